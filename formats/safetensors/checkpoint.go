// Package safetensors reads checkpoints of one or more safetensors files through memory maps, and writes such files.
//
// Headers are validated by github.com/nlpodyssey/safetensors, after checks of our own that say which tensor is wrong.
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
)

// The files of a checkpoint folder.
const (
	SingleFile = "model.safetensors"
	IndexFile  = "model.safetensors.index.json"
)

// DType is the type of a tensor's elements.
type DType = st.DType

// The types whose data can be read.
const (
	F32  = st.F32
	F16  = st.F16
	BF16 = st.BF16
	I32  = st.I32 // token ids
	I64  = st.I64
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
	n := int64(i.DType.Size())
	for _, d := range i.Shape {
		n *= int64(d)
	}
	return n
}

// Checkpoint is an open set of shards. Its methods but Close may be called from several goroutines.
type Checkpoint struct {
	shards []*shard
	infos  []Info
	homes  []*shard       // of each tensor
	index  map[string]int // of infos and homes, by name
}

type shard struct {
	name string // relative to the checkpoint's folder
	path string
	m    *mmap.Map
	st   st.SafeTensors
}

// Open maps a checkpoint and reads its headers, but no weights. The path is a folder with model.safetensors, or with
// shards and their index; or a .safetensors file; or an index file.
func Open(path string) (*Checkpoint, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	if !fi.IsDir() {
		if strings.HasSuffix(path, ".json") {
			return openIndex(path)
		}
		return openShards(filepath.Dir(path), []string{filepath.Base(path)}, nil)
	}
	// The order is that of Hugging Face's own loader.
	if _, err := os.Lstat(filepath.Join(path, SingleFile)); err == nil {
		return openShards(path, []string{SingleFile}, nil)
	}
	index := filepath.Join(path, IndexFile)
	if _, err := os.Lstat(index); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("safetensors: %s: holds neither %s nor %s", path, SingleFile, IndexFile)
	}
	return openIndex(index)
}

// openIndex opens the shards that an index names.
func openIndex(path string) (*Checkpoint, error) {
	places, err := readIndex(path)
	if err != nil {
		return nil, err
	}
	files := make(map[string]bool)
	for _, file := range places {
		files[file] = true
	}
	return openShards(filepath.Dir(path), sortedKeys(files), places)
}

// openShards opens the named files of dir. The index says which file holds each tensor; nil allows all that there are.
func openShards(dir string, files []string, index map[string]string) (*Checkpoint, error) {
	c := &Checkpoint{index: make(map[string]int)}
	for _, file := range files {
		s, entries, err := openShard(dir, file, index)
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
			c.index[e.name] = len(c.infos)
			c.infos = append(c.infos, Info{e.name, e.dtype, e.shape, s.name})
			c.homes = append(c.homes, s)
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

// checkPlace holds a tensor that a shard has against the index. It follows that no two shards hold the same name.
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

func openShard(dir, file string, index map[string]string) (*shard, []entry, error) {
	s := &shard{name: file, path: filepath.Join(dir, filepath.FromSlash(file))}
	m, err := mmap.Open(s.path)
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
	var entries []entry
	if s.st, entries, err = parseShard(file, m.Data); err != nil {
		m.Close()
		return nil, nil, err
	}
	return s, entries, nil
}

// parseShard validates a whole file; the tensors are views of it.
func parseShard(name string, file []byte) (st.SafeTensors, []entry, error) {
	entries, err := readHeader(name, file)
	if err != nil {
		return st.SafeTensors{}, nil, err
	}
	tensors, err := st.Deserialize(file)
	if err != nil {
		err = formatErrorf("%s: %v", name, err)
	}
	return tensors, entries, err
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
// after Close. A tensor of another type than those above is an UnsupportedError.
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
	view, ok := s.st.Tensor(name)
	if !ok { // it was there when the header was read
		return nil, info, fmt.Errorf("safetensors: %s: closed", s.name)
	}
	return view.Data(), info, nil
}

// Release lets the kernel drop the pages that hold only this tensor's data. Reading it again brings them back.
func (c *Checkpoint) Release(name string) {
	i, ok := c.index[name]
	if !ok {
		return
	}
	if view, ok := c.homes[i].st.Tensor(name); ok {
		c.homes[i].m.Release(view.Data())
	}
}

// ReadAhead has the kernel read a tensor's data while the caller does other things. A name that is not there is ignored.
func (c *Checkpoint) ReadAhead(name string) {
	i, ok := c.index[name]
	if !ok {
		return
	}
	if view, ok := c.homes[i].st.Tensor(name); ok {
		c.homes[i].m.ReadAhead(view.Data())
	}
}

// TotalBytes is the size of all tensors' data.
func (c *Checkpoint) TotalBytes() int64 {
	n := int64(0)
	for i := range c.infos {
		n += c.infos[i].Bytes()
	}
	return n
}

// Shards lists the paths of all files that hold tensors.
func (c *Checkpoint) Shards() []string {
	paths := make([]string, len(c.shards))
	for i, s := range c.shards {
		paths[i] = s.path
	}
	return paths
}

// Close gives up all shards; tensors' data is invalid after it.
func (c *Checkpoint) Close() error {
	var first error
	for _, s := range c.shards {
		if err := s.m.Close(); first == nil {
			first = err
		}
		s.st = st.SafeTensors{}
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
