package gguf

import (
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/mmap"
)

// File is an open GGUF file. Its methods but Close may be called from several goroutines.
type File struct {
	name      string
	version   int
	alignment int64
	md        Metadata
	infos     []ggml.Info
	index     map[string]int // of infos and extents, by tensor name
	extents   []extent
	start     int64     // where the data begins
	data      []byte    // the whole file; nil after Close
	m         *mmap.Map // nil after Parse
}

// Open maps the file at path and reads its directory, but no weights.
func Open(path string) (*File, error) {
	m, err := mmap.Open(path)
	if err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	f, err := Parse(path, m.Data)
	if err != nil {
		m.Close()
		return nil, err
	}
	f.m = m
	return f, nil
}

// Parse reads the directory of a file that is in memory already. Tensors are views of data; metadata is copied. The
// name is for messages. Whatever the data claims, memory is taken only in proportion to its length.
func Parse(name string, data []byte) (*File, error) {
	d := &decoder{name: name, data: data}
	version, tensors, entries := d.header()
	md := d.metadata(entries)
	if d.err != nil {
		return nil, d.err
	}
	alignment, err := alignmentOf(md)
	if err != nil {
		return nil, FormatError(name + ": " + err.Error())
	}
	infos, extents := d.tensors(tensors, alignment)
	start := alignUp(int64(d.off), alignment)
	d.checkExtents(start, infos, extents)
	if d.err != nil {
		return nil, d.err
	}
	f := &File{
		name: name, version: int(version), alignment: alignment, md: md, infos: infos, data: data, start: start,
		extents: extents, index: make(map[string]int, len(infos)),
	}
	for i := range infos {
		f.index[infos[i].Name] = i
	}
	return f, nil
}

// Name is the path that was opened.
func (f *File) Name() string { return f.name }

// Version is the format's version, 2 or 3.
func (f *File) Version() int { return f.version }

// Alignment is what the offsets of the data and of every tensor are multiples of, in bytes.
func (f *File) Alignment() int { return int(f.alignment) }

// Metadata returns all entries in file order. They must not be changed.
func (f *File) Metadata() Metadata { return f.md }

// Meta returns key's value.
func (f *File) Meta(key string) (any, bool) { return f.md.Get(key) }

// Tensors lists all tensors in file order. The list must not be changed. A vocabulary has none.
func (f *File) Tensors() []ggml.Info { return f.infos }

// Tensor returns a tensor as a view of the file.
func (f *File) Tensor(name string) (*ggml.Tensor, error) {
	i, ok := f.index[name]
	if !ok {
		return nil, fmt.Errorf("gguf: %s: no tensor %q", f.name, name)
	}
	if f.data == nil {
		return nil, fmt.Errorf("gguf: %s: closed", f.name)
	}
	lo, hi := f.start+f.extents[i].lo, f.start+f.extents[i].hi
	return &ggml.Tensor{Info: f.infos[i], Data: f.data[lo:hi:hi]}, nil
}

// Release lets the kernel drop the pages that hold only t's data. Reading it again brings them back.
func (f *File) Release(t *ggml.Tensor) {
	if f.m != nil {
		f.m.Release(t.Data)
	}
}

// ReadAhead has the kernel read a tensor's data while the caller does other things. A name that is not there is ignored.
func (f *File) ReadAhead(name string) {
	if i, ok := f.index[name]; ok && f.m != nil && f.data != nil {
		f.m.ReadAhead(f.data[f.start+f.extents[i].lo : f.start+f.extents[i].hi])
	}
}

// Close gives up the file; tensors' data is invalid after it.
func (f *File) Close() error {
	f.data = nil
	if f.m == nil {
		return nil
	}
	return f.m.Close()
}

// alignUp rounds n up to a multiple of alignment.
func alignUp(n, alignment int64) int64 { return (n + alignment - 1) / alignment * alignment }
