package tensor

import (
	"fmt"

	"github.com/llmq/llmq/internal/hugepages"
)

// Matrix is a dense row-major float32 matrix. Row i is Data[i*Stride : i*Stride+Cols].
// Weights are out×in, activations tokens×in.
type Matrix struct {
	Rows, Cols int
	Stride     int
	Data       []float32
}

// New returns a zero rows×cols matrix without padding.
func New(rows, cols int) *Matrix {
	return &Matrix{Rows: rows, Cols: cols, Stride: cols, Data: hugepages.Make[float32](rows * cols)}
}

// FromSlice wraps data, rows×cols without padding; it does not copy.
func FromSlice(rows, cols int, data []float32) *Matrix {
	if len(data) < rows*cols {
		panic(fmt.Sprintf("tensor: %d×%d matrix over %d values", rows, cols, len(data)))
	}
	return &Matrix{Rows: rows, Cols: cols, Stride: cols, Data: data[:rows*cols]}
}

// Row returns row i, sharing storage.
func (m *Matrix) Row(i int) []float32 {
	return m.Data[i*m.Stride : i*m.Stride+m.Cols : i*m.Stride+m.Cols]
}

// View returns rows [r0,r1) and columns [c0,c1), sharing storage.
func (m *Matrix) View(r0, r1, c0, c1 int) *Matrix {
	if r0 < 0 || r1 < r0 || r1 > m.Rows || c0 < 0 || c1 < c0 || c1 > m.Cols {
		panic(fmt.Sprintf("tensor: view [%d:%d, %d:%d] of a %d×%d matrix", r0, r1, c0, c1, m.Rows, m.Cols))
	}
	if r0 == r1 || c0 == c1 {
		return &Matrix{Rows: r1 - r0, Cols: c1 - c0}
	}
	return &Matrix{Rows: r1 - r0, Cols: c1 - c0, Stride: m.Stride, Data: m.Data[r0*m.Stride+c0 : (r1-1)*m.Stride+c1]}
}

// Clone returns a copy without padding.
func (m *Matrix) Clone() *Matrix {
	c := New(m.Rows, m.Cols)
	for i := range m.Rows {
		copy(c.Row(i), m.Row(i))
	}
	return c
}

// Zero clears every element.
func (m *Matrix) Zero() {
	for i := range m.Rows {
		clear(m.Row(i))
	}
}
