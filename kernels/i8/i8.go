// Package i8 multiplies matrices of signed bytes with scales, as LLM.int8() and SmoothQuant do.
package i8

import (
	"fmt"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Matrix is a matrix of signed bytes in which Group consecutive columns of a row share a scale: element (i,j) is
// Row(i)[j] · Scale[i·(Cols/Group) + j/Group]. Make one with New.
type Matrix struct {
	Rows, Cols, Group int
	Scale             []float32

	stride int // a multiple of step: rows end in zeros
	data   []int8
}

// step is the length of a group, and how many columns the kernels take at a time: a multiple of every vector's.
const step = 32

// maxCols keeps sums of products, each at most 2¹⁴, within an int32.
const maxCols = 1<<17 - 1

// New returns a zero matrix. group is cols, one scale for a row, or 32, where that divides cols.
func New(rows, cols, group int) *Matrix {
	if group != cols && (group != step || cols%group != 0) || group > maxCols {
		panic(fmt.Sprintf("i8: rows of %d columns in groups of %d", cols, group))
	}
	m := &Matrix{Rows: rows, Cols: cols, Group: group, stride: (cols + step - 1) / step * step}
	m.data = make([]int8, rows*m.stride+step)[:rows*m.stride] // kernels may read on
	m.Scale = make([]float32, rows*m.groups())
	return m
}

// groups is the number of scales of a row: one even where there are no columns.
func (m *Matrix) groups() int {
	if m.Group == m.Cols {
		return 1
	}
	return m.Cols / m.Group
}

// Row returns the codes of row i, sharing storage.
func (m *Matrix) Row(i int) []int8 { return m.data[i*m.stride : i*m.stride+m.Cols : i*m.stride+m.Cols] }

// Scales returns the scales of row i, sharing storage.
func (m *Matrix) Scales(i int) []float32 { return m.Scale[i*m.groups() : (i+1)*m.groups()] }

// MatMul sets dst = X·Wᵀ; X is tokens×in with one scale for each row, W out×in, dst tokens×out. Products are summed
// in int32, exactly, within a group of W's columns; each group's sum times its scale is added in float32.
func MatMul(dst *tensor.Matrix, x, w *Matrix) {
	if dst.Rows != x.Rows || dst.Cols != w.Rows || x.Cols != w.Cols {
		panic("i8: matmul shapes do not agree")
	}
	if x.Group != x.Cols {
		panic("i8: inputs need one scale for each row")
	}
	if inTiles(x, w) {
		matMulTiles(dst, x, w)
		return
	}
	product := productGo
	if k := tier(); k != nil {
		product = k.product
	}
	// A block of tokens stays in the cache while the weights' rows pass.
	const tokens, grain = 32, 16
	kernels.Parallel(w.Rows, grain, func(lo, hi int) {
		for t := 0; t < x.Rows; t += tokens {
			product(dst, x, w, t, min(t+tokens, x.Rows), lo, hi)
		}
	})
}

// productGo computes columns [lo,hi) of rows [t0,t1) of dst.
func productGo(dst *tensor.Matrix, x, w *Matrix, t0, t1, lo, hi int) {
	for o := lo; o < hi; o++ {
		row, scales := w.Row(o), w.Scales(o)
		for t := t0; t < t1; t++ {
			in := x.Row(t)
			var sum float32
			for g, s := range scales {
				var dot int32
				for j := g * w.Group; j < (g+1)*w.Group; j++ {
					dot += int32(in[j]) * int32(row[j])
				}
				sum += float32(s * float32(dot))
			}
			dst.Row(t)[o] = sum * x.Scale[t]
		}
	}
}

// kernelSet compute dst[t] = Σ_j x_t·w for one or four rows of X, with one scale or with one for each group.
type kernelSet struct {
	row, row4       func(dst *int32, x *int8, stride int, w *int8, n int)
	groups, groups4 func(dst *float32, x *int8, stride int, w *int8, scale *float32, groups int)
}

// product computes columns [lo,hi) of rows [t0,t1) of dst.
func (k *kernelSet) product(dst *tensor.Matrix, x, w *Matrix, t0, t1, lo, hi int) {
	if x.Cols == 0 {
		productGo(dst, x, w, t0, t1, lo, hi)
		return
	}
	var dots [4]int32
	var sums [4]float32
	for o := lo; o < hi; o++ {
		row, scales := &w.data[o*w.stride], w.Scales(o)
		for t := t0; t < t1; {
			n, in := 1, &x.data[t*x.stride]
			if t+4 <= t1 {
				n = 4
			}
			switch {
			case w.Group == w.Cols && n == 4:
				k.row4(&dots[0], in, x.stride, row, w.stride)
			case w.Group == w.Cols:
				k.row(&dots[0], in, x.stride, row, w.stride)
			case n == 4:
				k.groups4(&sums[0], in, x.stride, row, &scales[0], len(scales))
			default:
				k.groups(&sums[0], in, x.stride, row, &scales[0], len(scales))
			}
			for i := range n {
				if w.Group == w.Cols {
					sums[i] = scales[0] * float32(dots[i])
				}
				dst.Row(t + i)[o] = sums[i] * x.Scale[t+i]
			}
			t += n
		}
	}
}
