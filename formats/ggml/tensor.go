package ggml

import (
	"fmt"
	"math"
	"math/bits"
)

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

// Size is Bytes for an entry that nothing vouches for, 0 if the type's blocks are not known. It fails where Bytes, Rows or
// Elements would be wrong: without dimensions, on one that is not positive, on a row that is not a whole number of blocks,
// or on more elements or bytes than 63 bits hold.
func (i *Info) Size() (int64, error) {
	if len(i.Shape) == 0 {
		return 0, fmt.Errorf("%s %d has no dimensions", i.Type.Name, i.Shape)
	}
	blocks, blockLen := uint64(1), max(1, i.Type.BlockLen)
	for d, n := range i.Shape {
		if n <= 0 {
			return 0, fmt.Errorf("dimension %d of %d is not positive", d, i.Shape)
		}
		if d == len(i.Shape)-1 {
			if n%blockLen != 0 {
				return 0, fmt.Errorf("%s %d: rows of %d are not whole blocks of %d", i.Type.Name, i.Shape, n, blockLen)
			}
			n /= blockLen
		}
		var hi uint64
		if hi, blocks = bits.Mul64(blocks, uint64(n)); hi != 0 || blocks > math.MaxInt64 {
			return 0, fmt.Errorf("%s %d: more elements than fit 63 bits", i.Type.Name, i.Shape)
		}
	}
	hi, size := bits.Mul64(blocks, uint64(i.Type.BlockBytes))
	if hi != 0 || size > math.MaxInt64 || blocks > math.MaxInt64/uint64(blockLen) {
		return 0, fmt.Errorf("%s %d: more elements than fit 63 bits", i.Type.Name, i.Shape)
	}
	return int64(size), nil
}

// Tensor is a tensor with its data, which may be a view of a memory map.
type Tensor struct {
	Info
	Data []byte
}
