package gguf

import "fmt"

// Parse reads the directory of a file that is in memory already, and is all of its model. Tensors are views of data;
// metadata is copied. The name is for messages. Whatever the data claims, memory is taken only in proportion to its length.
func Parse(name string, data []byte) (*File, error) {
	p, err := parsePart(name, data)
	if err != nil {
		return nil, err
	}
	if s := p.split; s.count > 0 {
		return nil, UnsupportedError(fmt.Sprintf("%s: is part %d of %d", name, s.no+1, s.count))
	}
	return newFile([]*part{p})
}

// Alignment is what the offsets of the data and of every tensor are multiples of, in bytes; in the first part, should
// there be several.
func (f *File) Alignment() int { return int(f.parts[0].alignment) }

// Plan is the layout that is being filled in.
func (w *Writer) Plan() *Plan { return w.plan }
