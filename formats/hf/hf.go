// Package hf presents a checkpoint folder of Hugging Face's transformers library as a GGUF file: the metadata that
// llama.cpp's readers want, and the tensors under GGUF's names and in its order of rows (llama.cpp's
// convert_hf_to_gguf.py). Nothing is written; what reads GGUF files reads a folder as well.
package hf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/checkpoint"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/text"
)

// Options are the options of Open.
type Options struct {
	// Pre names the pre-tokenizer (tokenizer.ggml.pre) of a byte-level BPE tokenizer; "" recognises it from
	// tokenizer.json.
	Pre string
	// LoRA is the folder of an adapter that is merged into the weights; "": none.
	LoRA string
	// MTP says which layers that predict further tokens are kept.
	MTP arch.MTP
	// Lazy opens files of weights that come when they are needed; nil where the folder has them. Identity says, if it is not empty,
	// what they are, so that nobody has to look (Checkpoint.Identity).
	Lazy     func(path string) (*mmap.Map, error)
	Identity string
	// Passing says that they go when they are spent: see model.Passing. Check, if it is not nil, says whether all were what they should be.
	Passing bool
	Check   func() error
}

// Checkpoint is an open checkpoint folder. It is a model.Source.
type Checkpoint struct {
	dir      string
	weights  stored
	md       gguf.Metadata
	infos    []ggml.Info
	sources  []source
	index    map[string]int // of sources, by GGUF name
	warnings []string
	identity string
	lazy     bool // Options.Lazy is set
	passing  *passing
	declared bool // config.json has a quantization_config
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
	if what := checkpoint.Instead(dir); what != "" && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %s", dir, what)
	}
	if err != nil {
		return nil, err
	}
	config, err := object.Parse(path, data)
	if err != nil {
		return nil, err
	}
	quantization, declared := config.Get("quantization_config") // null is none
	if text := config.Object("text_config"); text != nil && !declared {
		quantization, declared = text.Get("quantization_config")
	}
	w, err := checkpoint.Open(dir, checkpoint.Config{Quantization: quantization, LoRA: opt.LoRA, Open: opt.Lazy})
	if err != nil {
		return nil, err
	}
	c := &Checkpoint{dir: dir, weights: stored{Checkpoint: w}, index: make(map[string]int), warnings: w.Warnings(), identity: opt.Identity,
		lazy: opt.Lazy != nil, declared: declared}
	if opt.Passing {
		c.passing = &passing{check: opt.Check}
	}
	if err := c.load(config, opt); err != nil {
		w.Close()
		return nil, err
	}
	return c, nil
}

func (c *Checkpoint) load(config *object.Object, opt Options) error {
	// The tensors come first: they bound the vocabulary's size.
	conv, err := arch.Convert(config, c.weights, arch.Options{MTP: opt.MTP})
	if err != nil {
		return fmt.Errorf("%s: %w", c.dir, err)
	}
	c.warnings = append(c.warnings, conv.Warnings...)
	for i, t := range conv.Tensors {
		s, err := newSource(c.weights, t)
		if err != nil {
			return fmt.Errorf("%s: %w", c.dir, err)
		}
		c.sources = append(c.sources, s)
		c.infos = append(c.infos, s.info)
		c.index[s.info.Name] = i
	}
	c.md.Set("general.architecture", conv.Family.Name)
	c.md.Set("general.type", "model")
	c.md.Set("general.quantization_version", uint32(quantizationVersion))
	if err := c.loadCard(); err != nil {
		return err
	}
	if err := c.loadGeneration(); err != nil {
		return err
	}
	c.md = append(c.md, conv.Metadata...)
	_, err = c.loadTokenizer(tokenizerModel{quirks: arch.TokenizerOf(conv.Class), vocab: conv.Vocab, config: conv.Config}, opt)
	return err
}

// quantizationVersion is GGML_QNT_VERSION of ggml.h: the layout of the block types.
const quantizationVersion = 2

// maxFileBytes is beyond any configuration or tokenizer: the largest tokenizer.json have 35 MB.
const maxFileBytes = 256 << 20

// readFile reads a file beside the weights.
func readFile(path string) ([]byte, error) { return text.ReadFile(path, maxFileBytes) }

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
func (c *Checkpoint) readObject(name string) (*object.Object, error) {
	data, path, err := c.readOptional(name)
	if data == nil || err != nil {
		return nil, err
	}
	return object.Parse(path, data)
}

// Name is the folder.
func (c *Checkpoint) Name() string { return c.dir }

// Original says that tensors are as the model's authors gave them, even where they are quantized.
func (c *Checkpoint) Original() bool { return true }

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
	return c.Rows(name, 0, c.sources[i].info.Rows())
}

// Rows returns rows [lo,hi) of a tensor, the rows being those of its last dimension.
func (c *Checkpoint) Rows(name string, lo, hi int) (*ggml.Tensor, error) {
	i, ok := c.index[name]
	if !ok {
		return nil, fmt.Errorf("hf: %s: no tensor %q", c.dir, name)
	}
	s := &c.sources[i]
	data, err := s.rows(c.weights, lo, hi)
	if err != nil {
		return nil, fmt.Errorf("hf: %s: %w", c.dir, err)
	}
	if s.copies(c.weights, lo, hi) {
		s.reads(c.weights, lo, hi, c.weights.Release)
	}
	return &ggml.Tensor{Info: s.info, Data: data}, nil
}

// Copies says that rows [lo,hi) of a tensor are made anew each time that Rows is called, from bytes that are there: see
// model.RowCopier. Of a folder whose weights come when they are needed, and may go when they are released, none are.
func (c *Checkpoint) Copies(name string, lo, hi int) bool {
	i, ok := c.index[name]
	return ok && !c.lazy && c.sources[i].copies(c.weights, lo, hi)
}

// Release says that a tensor's data is not needed for now, so that its pages need not stay resident.
func (c *Checkpoint) Release(t *ggml.Tensor) { c.eachPart(t.Name, c.weights.Release) }

// Rest is model.Rester's.
func (c *Checkpoint) Rest(t *ggml.Tensor) { c.eachPart(t.Name, c.weights.Rest) }

// ReadAhead has the kernel read a tensor's data while the caller does other things. A name that is not there is ignored.
func (c *Checkpoint) ReadAhead(name string) { c.eachPart(name, c.weights.ReadAhead) }

// eachPart calls f with all that a tensor is made of.
func (c *Checkpoint) eachPart(name string, f func(name string, lo, hi int)) {
	if i, ok := c.index[name]; ok {
		s := &c.sources[i]
		s.reads(c.weights, 0, s.info.Rows(), f)
	}
}

// Identity says what the weights are, such as a hub's digest of them: the same in every run, and with other weights another. It is ""
// where that is not known without reading them.
func (c *Checkpoint) Identity() string { return c.identity }

// Changed is an error that names the first file of weights that was written to since it was opened.
func (c *Checkpoint) Changed() error {
	if err := c.weights.Changed(); err != nil {
		return fmt.Errorf("hf: %w", err)
	}
	return nil
}

// Close closes the weights.
func (c *Checkpoint) Close() error { return c.weights.Close() }

// maxVocab is the number of tokens beyond which a vocabulary is taken for a corrupt file.
const maxVocab = 1 << 24
