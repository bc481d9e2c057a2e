package safetensors

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	st "github.com/nlpodyssey/safetensors"

	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/sniff"
)

// The files of a checkpoint folder.
const (
	SingleFile = "model.safetensors"
	IndexFile  = "model.safetensors.index.json"
)

// Info describes a tensor.
type Info struct {
	Name  string
	DType DType
	Shape []int  // row-major, the longest stride first; empty for a scalar
	Shard string // the name of the file that holds it
}

// Bytes is the size of the tensor's data.
func (i *Info) Bytes() int64 {
	n := int64(i.DType.Bits())
	for _, d := range i.Shape {
		n *= int64(d)
	}
	return n / 8
}

// Checkpoint is an open set of shards. Its methods but Close may be called from several goroutines.
type Checkpoint struct {
	shards []*shard
	infos  []Info
	homes  []home         // of each tensor
	index  map[string]int // of infos and homes, by name
}

type shard struct {
	name string // relative to the checkpoint's folder
	path string
	m    *mmap.Map
}

// home is where a tensor's data lies.
type home struct {
	*shard
	data []byte // a view of the shard
}

// opener maps a file.
type opener func(path string) (*mmap.Map, error)

// Open maps a checkpoint and reads its headers, but no weights. The path is a folder with model.safetensors, or with
// shards and their index; or a .safetensors file; or an index file.
func Open(path string) (*Checkpoint, error) { return OpenWith(path, mmap.Open) }

// OpenWith is Open with another function to map shards than mmap.Open.
func OpenWith(path string, open func(path string) (*mmap.Map, error)) (*Checkpoint, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	if !fi.IsDir() {
		if strings.HasSuffix(path, ".json") {
			return openIndex(path, open)
		}
		return openShards(filepath.Dir(path), []string{filepath.Base(path)}, nil, open)
	}
	// The order is that of Hugging Face's own loader.
	if _, err := os.Lstat(filepath.Join(path, SingleFile)); err == nil {
		return openShards(path, []string{SingleFile}, nil, open)
	}
	index := filepath.Join(path, IndexFile)
	if _, err := os.Lstat(index); !errors.Is(err, fs.ErrNotExist) {
		return openIndex(index, open)
	}
	files, err := numberedShards(path)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("safetensors: %s: holds neither %s nor %s: %w", path, SingleFile, IndexFile, fs.ErrNotExist)
	}
	return openShards(path, files, nil, open)
}

// numberedShards lists model-00001-of-0000N.safetensors to model-0000N-of-0000N.safetensors of a folder without an index,
// all of which must be there.
func numberedShards(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	for _, f := range list {
		var i, n int
		if k, _ := fmt.Sscanf(f.Name(), "model-%05d-of-%05d.safetensors", &i, &n); k != 2 {
			continue
		}
		var files []string
		for i := 1; i <= n; i++ {
			file := fmt.Sprintf("model-%05d-of-%05d.safetensors", i, n)
			if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
				return nil, fmt.Errorf("safetensors: %s: shard %d of %d is missing, and there is no %s: %w", dir, i, n, IndexFile, err)
			}
			files = append(files, file)
		}
		return files, nil
	}
	return nil, nil
}

// openIndex opens the shards that an index names.
func openIndex(path string, open opener) (*Checkpoint, error) {
	places, err := readIndex(path)
	if err != nil {
		return nil, err
	}
	files := make(map[string]bool)
	for _, file := range places {
		files[file] = true
	}
	return openShards(filepath.Dir(path), sortedKeys(files), places, open)
}

// openShards opens the named files of dir. The index says which file holds each tensor; nil allows all that there are.
func openShards(dir string, files []string, index map[string]string, open opener) (*Checkpoint, error) {
	c := &Checkpoint{index: make(map[string]int)}
	for _, file := range files {
		s, entries, err := openShard(dir, file, index, open)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.shards = append(c.shards, s)
		for _, e := range entries {
			if err := checkPlace(s.name, e.name, index); err != nil {
				c.Close()
				return nil, err
			}
			if i, ok := c.index[e.name]; ok {
				err := formatErrorf("%s: tensor %q is in %s too", s.name, e.name, c.infos[i].Shard)
				c.Close()
				return nil, err
			}
			c.index[e.name] = len(c.infos)
			c.infos = append(c.infos, Info{e.name, e.dtype, e.shape, s.name})
			c.homes = append(c.homes, home{s, e.data})
		}
	}
	if len(c.infos) != len(index) && index != nil {
		for _, name := range sortedKeys(index) {
			if _, ok := c.index[name]; !ok {
				c.Close()
				return nil, formatErrorf("%s: no tensor %q, which the index places there", index[name], name)
			}
		}
	}
	return c, nil
}

// checkPlace holds a tensor that a shard has against the index.
func checkPlace(shard, tensor string, index map[string]string) error {
	place, ok := index[tensor]
	switch {
	case index == nil || place == shard:
		return nil
	case ok:
		return formatErrorf("%s: tensor %q is here, but the index places it in %s", shard, tensor, place)
	default:
		return formatErrorf("%s: tensor %q is here, but the index does not name it", shard, tensor)
	}
}

func openShard(dir, file string, index map[string]string, open opener) (*shard, []entry, error) {
	s := &shard{name: file, path: filepath.Join(dir, filepath.FromSlash(file))}
	m, err := open(s.path)
	if errors.Is(err, fs.ErrNotExist) && index != nil {
		n := 0
		for _, f := range index {
			if f == file {
				n++
			}
		}
		return nil, nil, fmt.Errorf("safetensors: %s: missing shard: the index places %d tensors in it: %w", s.path, n, err)
	} else if err != nil {
		return nil, nil, fmt.Errorf("safetensors: %w", err)
	}
	s.m = m
	if what := sniff.Impostor(m.Data); what != "" {
		m.Close()
		return nil, nil, formatErrorf("%s: it is %s", s.path, what)
	}
	entries, err := parseShard(file, m.Data)
	if err != nil {
		m.Close()
		return nil, nil, err
	}
	return s, entries, nil
}

// parseShard validates a whole file; the tensors' data are views of it.
func parseShard(name string, file []byte) ([]entry, error) {
	h, err := readHeader(name, file)
	if err == nil && !h.beyondLibrary {
		if _, err = st.Deserialize(file); err != nil {
			err = formatErrorf("%s: %v", name, err)
		}
	}
	return h.entries, err
}

// Names lists all tensors: shard by shard in the order of the shards' names, each in the order of its data.
func (c *Checkpoint) Names() []string {
	names := make([]string, len(c.infos))
	for i := range c.infos {
		names[i] = c.infos[i].Name
	}
	return names
}

// Lookup describes a tensor.
func (c *Checkpoint) Lookup(name string) (Info, bool) {
	i, ok := c.index[name]
	if !ok {
		return Info{}, false
	}
	return c.infos[i], true
}

// Tensor returns a tensor's data as a view of its shard, little-endian. The data must not be written to, and is invalid
// after Close. A tensor of another type than F32, F16, BF16, I32 and I64 is an UnsupportedError.
func (c *Checkpoint) Tensor(name string) ([]byte, Info, error) {
	i, ok := c.index[name]
	if !ok {
		return nil, Info{}, fmt.Errorf("safetensors: no tensor %q", name)
	}
	info, s := c.infos[i], c.homes[i]
	if !slices.Contains([]DType{F32, F16, BF16, I32, I64}, info.DType) {
		return nil, info, UnsupportedError(fmt.Sprintf("%s: tensor %q: its type %s is none of F32, F16, BF16, I32 and I64",
			s.name, name, info.DType))
	}
	if s.m.Data == nil {
		return nil, info, fmt.Errorf("safetensors: %s: closed", s.name)
	}
	return s.data, info, nil
}

// Raw returns a tensor's data as it is stored, whatever its type, and the map that it is a view of, which can be told to
// release or read ahead parts of it. The data must not be written to, and is invalid after Close.
func (c *Checkpoint) Raw(name string) (data []byte, m *mmap.Map, ok bool) {
	i, ok := c.index[name]
	if !ok || c.homes[i].m.Data == nil {
		return nil, nil, false
	}
	return c.homes[i].data, c.homes[i].m, true
}

// Changed is an error that names the first shard that was written to since it was opened.
func (c *Checkpoint) Changed() error {
	for _, s := range c.shards {
		if err := s.m.Changed(); err != nil {
			return fmt.Errorf("safetensors: %w", err)
		}
	}
	return nil
}

// Close gives up all shards; tensors' data is invalid after it.
func (c *Checkpoint) Close() error {
	var first error
	for _, s := range c.shards {
		if err := s.m.Close(); first == nil {
			first = err
		}
	}
	return first
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
