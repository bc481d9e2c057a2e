package ggml

// Info is a tensor as a file's directory describes it.
type Info struct {
	Name string
	Type *Type
	// Shape is row-major, the longest stride first: {out, in} for a linear, {n} for a norm. GGUF stores the reverse.
	Shape []int
}

// Elements is the number of weights.
func (i *Info) Elements() int {
	n := 1
	for _, d := range i.Shape {
		n *= d
	}
	return n
}

// Cols is the length of a row: the last dimension.
func (i *Info) Cols() int { return i.Shape[len(i.Shape)-1] }

// Rows is the number of rows: the product of all dimensions but the last.
func (i *Info) Rows() int { return i.Elements() / i.Cols() }

// Bytes is the size of the tensor's data.
func (i *Info) Bytes() int64 { return int64(i.Rows()) * int64(i.Type.RowBytes(i.Cols())) }

// Tensor is a tensor with its data, which may be a view of a memory map.
type Tensor struct {
	Info
	Data []byte
}
