package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/tensor"
)

// Serial is NN, TN and NT of float32 values on the calling goroutine alone, for work that is spread over the processors already.
type Serial struct{}

// NN sets dst += alpha·A·B; A is m×k, B k×n, dst m×n.
func (Serial) NN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	checkGemm(dst, a.Rows, a.Cols, b.Rows, b.Cols)
	t := tile.For(kernels.F32)
	if t == nil {
		gemmNNGo(dst, alpha, a, b)
		return
	}
	left := tile.RowsOf(a)
	productOn(1, t, alpha, &left, a.Cols, add, result{c: dst, b: tile.ColsOf(b)})
}

// TN sets dst += alpha·Aᵀ·B; A is k×m, B k×n, dst m×n.
func (Serial) TN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	checkGemm(dst, a.Cols, a.Rows, b.Rows, b.Cols)
	t := tile.For(kernels.F32)
	if t == nil {
		gemmTNGo(dst, alpha, a, b)
		return
	}
	productOfRowsOn(1, t, dst, alpha, a, b, add)
}

// NT sets dst += alpha·A·Bᵀ; A is m×k, B n×k, dst m×n.
func (Serial) NT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	checkGemm(dst, a.Rows, a.Cols, b.Cols, b.Rows)
	t := tile.For(kernels.F32)
	if t == nil {
		gemmNTGo(dst, alpha, a, b, false)
		return
	}
	left := tile.RowsOf(a)
	productOn(1, t, alpha, &left, a.Cols, add, result{c: dst, b: tile.RowsOf(b)})
}
