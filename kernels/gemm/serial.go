package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/tensor"
)

// Serial is NN, TN and NT, and what sets in the place of adding, on the calling goroutine alone, for work that is spread over the processors already.
type Serial struct {
	// Rounds lets inputs be rounded, as with kernels.Auto. Otherwise they are float32.
	Rounds bool
}

func (s Serial) tiling() *tile.Tiling {
	if s.Rounds {
		return tile.For(kernels.Auto)
	}
	return tile.For(kernels.F32)
}

// NN sets dst += alpha·A·B; A is m×k, B k×n, dst m×n.
func (s Serial) NN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	checkGemm(dst, a.Rows, a.Cols, b.Rows, b.Cols)
	t := s.tiling()
	if t == nil {
		gemmNNGo(dst, alpha, a, b)
		return
	}
	left := tile.RowsOf(a)
	productOn(1, t, alpha, &left, a.Cols, add, result{dst, tile.ColsOf(b)})
}

// SetNN sets dst = alpha·A·B.
func (s Serial) SetNN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	t := s.tiling()
	if t == nil {
		dst.Zero()
		s.NN(dst, alpha, a, b)
		return
	}
	checkGemm(dst, a.Rows, a.Cols, b.Rows, b.Cols)
	left := tile.RowsOf(a)
	productOn(1, t, alpha, &left, a.Cols, store, result{dst, tile.ColsOf(b)})
}

// TN sets dst += alpha·Aᵀ·B; A is k×m, B k×n, dst m×n.
func (s Serial) TN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	checkGemm(dst, a.Cols, a.Rows, b.Rows, b.Cols)
	t := s.tiling()
	if t == nil {
		gemmTNGo(dst, alpha, a, b)
		return
	}
	productOfRowsOn(1, t, dst, alpha, a, b, add)
}

// SetNT sets dst = alpha·A·Bᵀ.
func (s Serial) SetNT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	t := s.tiling()
	if t == nil {
		dst.Zero()
		s.NT(dst, alpha, a, b)
		return
	}
	checkGemm(dst, a.Rows, a.Cols, b.Cols, b.Rows)
	left := tile.RowsOf(a)
	productOn(1, t, alpha, &left, a.Cols, store, result{dst, tile.RowsOf(b)})
}

// NT sets dst += alpha·A·Bᵀ; A is m×k, B n×k, dst m×n.
func (s Serial) NT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	checkGemm(dst, a.Rows, a.Cols, b.Cols, b.Rows)
	t := s.tiling()
	if t == nil {
		gemmNTGo(dst, alpha, a, b, false)
		return
	}
	left := tile.RowsOf(a)
	productOn(1, t, alpha, &left, a.Cols, add, result{dst, tile.RowsOf(b)})
}
