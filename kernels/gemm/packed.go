package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/tensor"
)

// Packed is a matrix B that many products with few rows of A share: each of them would take as long to pack B as to multiply.
type Packed struct {
	b *tensor.Matrix
	t *tile.Tiling // nil: products take b as it is
	// words are blocks of t.KC steps one after the other, strip after strip in each, as pass.columns packs them.
	words []uint32
}

// Pack packs b, k×n, for products of precision p. It must not change while they are made.
func Pack(b *tensor.Matrix, p kernels.Precision) *Packed {
	t := tile.For(p)
	r := &Packed{b: b, t: t}
	if t == nil || b.Rows == 0 {
		return r
	}
	steps, strips := r.steps(), (b.Cols+t.Strip()-1)/t.Strip()
	r.words = make([]uint32, steps*strips*t.Strip())
	operand := tile.ColsOf(b)
	kernels.Spread(strips, kernels.Processors(), func(i int) {
		j := i * t.Strip()
		for s0 := 0; s0 < steps; s0 += t.KC {
			s1 := min(s0+t.KC, steps)
			t.PackB(&operand, b.Rows, r.block(j, s0)[:(s1-s0)*t.Strip()], nil, j, min(j+t.Strip(), b.Cols), s0, s1)
		}
	})
	return r
}

// PackedBytes is the size of a packed k×n matrix with products of precision p.
func PackedBytes(k, n int, p kernels.Precision) int64 {
	t := tile.For(p)
	if t == nil {
		return 0
	}
	r := Packed{b: &tensor.Matrix{Rows: k}, t: t}
	return 4 * int64(r.steps()) * int64((n+t.Strip()-1)/t.Strip()*t.Strip())
}

// steps is the number of words along the summed dimension.
func (r *Packed) steps() int { return (r.b.Rows + r.t.Depth() - 1) / r.t.Depth() }

// block is where strips begin, from that of column j on, of the block that starts at step s0.
func (r *Packed) block(j, s0 int) []uint32 {
	strips := (r.b.Cols + r.t.Strip() - 1) / r.t.Strip()
	n := min(r.t.KC, r.steps()-s0)
	return r.words[(s0*strips+n*(j/r.t.Strip()))*r.t.Strip():]
}

// NNPacked is NN for columns [j0,n) of B and of dst, to the last bit.
func NNPacked(dst *tensor.Matrix, alpha float32, a *tensor.Matrix, b *Packed, j0 int) {
	checkGemm(dst, a.Rows, a.Cols, b.b.Rows, b.b.Cols)
	if j0 >= dst.Cols {
		return
	}
	c, of := dst.View(0, dst.Rows, j0, dst.Cols), b.b.View(0, b.b.Rows, j0, dst.Cols)
	if b.t == nil {
		gemmNNGo(c, alpha, a, of)
		return
	}
	r := result{c: c, b: tile.ColsOf(of)}
	if j0%b.t.Strip() == 0 {
		r.packed, r.from = b, j0
	}
	left := tile.RowsOf(a)
	product(b.t, alpha, &left, a.Cols, add, r)
}
