// Package hf presents a checkpoint folder of Hugging Face's transformers library as a GGUF file: the metadata that
// llama.cpp's readers want, and the tensors under GGUF's names and in its order of rows (llama.cpp's
// convert_hf_to_gguf.py). Nothing is written; what reads GGUF files reads a folder as well.
package hf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/safetensors"
)

// Options are the options of Open.
type Options struct {
	// Pre names the pre-tokenizer (tokenizer.ggml.pre) of a byte-level BPE tokenizer; "" recognises it from
	// tokenizer.json.
	Pre string
}

// Checkpoint is an open checkpoint folder. It is a model.Source.
type Checkpoint struct {
	dir      string
	st       *safetensors.Checkpoint
	md       gguf.Metadata
	infos    []ggml.Info
	sources  []source
	index    map[string]int // of sources, by GGUF name
	dims     int            // rotated elements of a head
	warnings []string
}

// The files of a folder that are read beside the weights. All but the first, and one with a tokenizer, may be absent.
const (
	configFile          = "config.json"
	tokenizerConfigFile = "tokenizer_config.json"
	specialTokensFile   = "special_tokens_map.json"
	addedTokensFile     = "added_tokens.json"
	generationFile      = "generation_config.json"
	cardFile            = "README.md"
)

// Open reads the headers of the weights, the configuration and the tokenizer, and checks them against each other.
func Open(dir string, opt Options) (*Checkpoint, error) {
	c, err := open(dir, opt)
	if err != nil {
		return nil, fmt.Errorf("hf: %w", err)
	}
	return c, nil
}

func open(dir string, opt Options) (*Checkpoint, error) {
	path := filepath.Join(dir, configFile)
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	cfg, err := parseConfig(path, data)
	if err != nil {
		return nil, err
	}
	st, err := safetensors.Open(dir)
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{dir: dir, st: st, dims: cfg.rope.dims, index: make(map[string]int)}
	if err := c.load(cfg, opt); err != nil {
		st.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) load(cfg *config, opt Options) error {
	untied, err := cfg.untied(c.st)
	if err != nil {
		return err
	}
	if untied {
		cfg.tied = false
		c.warn("%s: %q is kept, though tie_word_embeddings is true: it is not the embeddings", c.dir, headName)
	}
	// The tensors come first: they bound the vocabulary's size.
	if c.sources, err = cfg.mapTensors(c.st); err != nil {
		return fmt.Errorf("%s: %w", c.dir, err)
	}
	weights := 0
	for i, s := range c.sources {
		c.infos = append(c.infos, s.info)
		c.index[s.info.Name] = i
		if s.data == nil {
			weights += s.info.Elements()
		}
	}
	c.md.Set("general.architecture", cfg.arch.name)
	c.md.Set("general.type", "model")
	c.md.Set("general.quantization_version", uint32(quantizationVersion))
	if err := c.loadCard(weights); err != nil {
		return err
	}
	if err := c.loadGeneration(); err != nil {
		return err
	}
	cfg.metadata(&c.md)
	_, err = c.loadTokenizer(tokenizerModel{class: cfg.class, vocab: cfg.vocab, config: cfg.object}, opt)
	return err
}

// quantizationVersion is GGML_QNT_VERSION of ggml.h: the layout of the block types.
const quantizationVersion = 2

// readFile reads a regular file. A pipe would keep the reader waiting, and a device may have no end.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	return os.ReadFile(path)
}

// readOptional returns nil for a file that is not there.
func (c *Checkpoint) readOptional(name string) ([]byte, string, error) {
	path := filepath.Join(c.dir, name)
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, path, nil
	}
	return data, path, err
}

// readObject returns nil for a file that is not there.
func (c *Checkpoint) readObject(name string) (*object, error) {
	data, path, err := c.readOptional(name)
	if data == nil || err != nil {
		return nil, err
	}
	return parseObject(path, data)
}

// Name is the folder.
func (c *Checkpoint) Name() string { return c.dir }

// Meta returns a metadata value; see gguf.KV for its Go types.
func (c *Checkpoint) Meta(key string) (any, bool) { return c.md.Get(key) }

// Metadata returns all metadata in the order in which a file should have them. It lacks general.file_type, which
// depends on what the tensors become.
func (c *Checkpoint) Metadata() gguf.Metadata { return append(gguf.Metadata(nil), c.md...) }

// Warnings says what of the folder was left out, and why.
func (c *Checkpoint) Warnings() []string { return c.warnings }

func (c *Checkpoint) warn(format string, args ...any) {
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

// Tensors lists all tensors: the embeddings, the layers, the head.
func (c *Checkpoint) Tensors() []ggml.Info { return c.infos }

// Tensor returns a tensor's data in its stored type: a view of the checkpoint, or a copy where rows change places.
func (c *Checkpoint) Tensor(name string) (*ggml.Tensor, error) {
	i, ok := c.index[name]
	if !ok {
		return nil, fmt.Errorf("hf: %s: no tensor %q", c.dir, name)
	}
	s := &c.sources[i]
	t := &ggml.Tensor{Info: s.info, Data: s.data}
	if s.data != nil {
		return t, nil
	}
	data, _, err := c.st.Tensor(s.hf)
	if err != nil {
		return nil, fmt.Errorf("hf: %s: %w", c.dir, err)
	}
	t.Data = data
	if s.heads > 0 {
		t.Data = interleave(data, s.info.Shape[0], s.heads, c.dims)
		c.st.Release(s.hf)
	}
	return t, nil
}

// Release says that a tensor's data is not needed for now, so that its pages need not stay resident.
func (c *Checkpoint) Release(t *ggml.Tensor) {
	if i, ok := c.index[t.Name]; ok && c.sources[i].hf != "" {
		c.st.Release(c.sources[i].hf)
	}
}

// ReadAhead has the kernel read a tensor's data while the caller does other things. A name that is not there is ignored.
func (c *Checkpoint) ReadAhead(name string) {
	if i, ok := c.index[name]; ok && c.sources[i].hf != "" {
		c.st.ReadAhead(c.sources[i].hf)
	}
}

// Close closes the weights.
func (c *Checkpoint) Close() error { return c.st.Close() }
