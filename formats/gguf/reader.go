package gguf

import (
	"fmt"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
)

// File is an open GGUF file, or a model that is split into several. Its methods but Close may be called from several
// goroutines.
type File struct {
	parts  []*part
	md     Metadata
	infos  []ggml.Info
	index  map[string]int // of infos and places, by tensor name
	places []place
}

// place is where a tensor's data lies: bytes lo to hi of a part.
type place struct {
	part   *part
	lo, hi int64
}

// Open maps the file at path and reads its directory, but no weights. Of a model that is split into several files path is
// the first, and the others lie beside it. Tensors whose type is not in ggml.Types are an UnsupportedError.
func Open(path string) (*File, error) {
	parts, err := openParts(path)
	if err != nil {
		return nil, err
	}
	f, err := newFile(parts)
	if err != nil {
		closeParts(parts)
	}
	return f, err
}

// openAll opens parts under names of their own, which tell nothing: those of a file that has not got its name yet.
func openAll(paths []string) (f *File, err error) {
	var parts []*part
	defer func() {
		if err != nil {
			closeParts(parts)
		}
	}()
	for _, path := range paths {
		p, err := openPart(path)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p)
	}
	if len(parts) > 1 {
		if err := checkParts(parts); err != nil {
			return nil, err
		}
	}
	return newFile(parts)
}

// newFile puts parts together that belong together, and demands that their tensors can be decoded, under names that llama.cpp reads.
func newFile(parts []*part) (*File, error) {
	f := &File{parts: parts, md: modelMetadata(parts), index: map[string]int{}}
	for _, p := range parts {
		for i := range p.infos {
			t := &p.infos[i]
			if n := len(t.Name); n > maxNameBytes {
				return nil, UnsupportedError(fmt.Sprintf("%s: tensor %.200q: the name has %d bytes, more than %d", p.name, t.Name, n, maxNameBytes))
			}
			if _, err := ggml.ByID(t.Type.ID); err != nil {
				return nil, UnsupportedError(fmt.Sprintf("%s: tensor %q: %s", p.name, t.Name, strings.TrimPrefix(err.Error(), "ggml: ")))
			}
			f.index[t.Name] = len(f.places)
			f.places = append(f.places, place{p, p.start + p.extents[i].lo, p.start + p.extents[i].hi})
		}
		f.infos = append(f.infos, p.infos...)
	}
	return f, nil
}

// Name is the path that was opened.
func (f *File) Name() string { return f.parts[0].name }

// Paths are the files that the model lies in, in order: one, but for a split model.
func (f *File) Paths() []string { return paths(f.parts) }

// Size is the size in bytes of all files.
func (f *File) Size() (n int64) {
	for _, p := range f.parts {
		n += int64(len(p.data))
	}
	return n
}

func paths(parts []*part) (names []string) {
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// Version is the format's version, 2 or 3.
func (f *File) Version() int { return f.parts[0].version }

// Metadata returns all entries in file order, without those that tell the place of a part. They must not be changed.
func (f *File) Metadata() Metadata { return f.md }

// Meta returns key's value.
func (f *File) Meta(key string) (any, bool) { return f.md.Get(key) }

// Tensors lists all tensors in file order. The list must not be changed. A vocabulary has none.
func (f *File) Tensors() []ggml.Info { return f.infos }

// Tensor returns a tensor as a view of the file.
func (f *File) Tensor(name string) (*ggml.Tensor, error) {
	i, err := f.find(name)
	if err != nil {
		return nil, err
	}
	return &ggml.Tensor{Info: f.infos[i], Data: f.places[i].view()}, nil
}

// Rows returns rows lo ≤ row < hi of a tensor, taken for a matrix of Rows()×Cols(), as a view of the file.
func (f *File) Rows(name string, lo, hi int) (*ggml.Tensor, error) {
	i, err := f.find(name)
	if err != nil {
		return nil, err
	}
	info := f.infos[i]
	if lo < 0 || hi < lo || hi > info.Rows() {
		return nil, fmt.Errorf("gguf: %s: tensor %q: rows %d to %d of %d", f.Name(), name, lo, hi, info.Rows())
	}
	n := info.Type.RowBytes(info.Cols())
	info.Shape = []int{hi - lo, info.Cols()}
	return &ggml.Tensor{Info: info, Data: f.places[i].view()[lo*n : hi*n : hi*n]}, nil
}

// find returns the index of a tensor of an open file.
func (f *File) find(name string) (int, error) {
	i, ok := f.index[name]
	if !ok {
		return 0, fmt.Errorf("gguf: %s: no tensor %q", f.Name(), name)
	}
	if f.places[i].part.data == nil {
		return 0, fmt.Errorf("gguf: %s: closed", f.Name())
	}
	return i, nil
}

func (p *place) view() []byte { return p.part.data[p.lo:p.hi:p.hi] }

// Release lets the kernel drop the pages that hold only t's data. Reading it again brings them back.
func (f *File) Release(t *ggml.Tensor) {
	if i, ok := f.index[t.Name]; ok && f.places[i].part.m != nil {
		f.places[i].part.m.Release(t.Data)
	}
}

// Rest is model.Rester's.
func (f *File) Rest(t *ggml.Tensor) {
	if i, ok := f.index[t.Name]; ok && f.places[i].part.m != nil {
		f.places[i].part.m.Rest(t.Data)
	}
}

// ReadAhead has the kernel read a tensor's data while the caller does other things. A name that is not there is ignored.
func (f *File) ReadAhead(name string) {
	if i, err := f.find(name); err == nil && f.places[i].part.m != nil {
		f.places[i].part.m.ReadAhead(f.places[i].view())
	}
}

// Changed is an error that names the first file that was written to since it was opened.
func (f *File) Changed() error {
	for _, p := range f.parts {
		if p.m == nil {
			continue
		}
		if err := p.m.Changed(); err != nil {
			return fmt.Errorf("gguf: %w", err)
		}
	}
	return nil
}

// Close gives up the file; tensors' data is invalid after it.
func (f *File) Close() error { return closeParts(f.parts) }

// alignUp rounds n up to a multiple of alignment.
func alignUp(n, alignment int64) int64 { return (n + alignment - 1) / alignment * alignment }
