//go:build !purego

package scan

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// weigh sets y = w_0 + Σ_i w_{k+i} ⊙ x_{r+i·step} over all rows of w from k < w.Rows on.
func weigh(y []float32, w, x *tensor.Matrix, k, r, step int) {
	l := kernels.CurrentTier().Lanes()
	n := 0
	if l > 0 {
		n = len(y) &^ (l - 1)
	}
	if n > 0 {
		taps := w.Rows - k
		bias, from, first, last := w.Row(0)[:n], w.Row(k)[:n], x.Row(r)[:n], x.Row(r + (taps-1)*step)[:n]
		_ = last // it is there
		if l == 16 {
			weighAVX512(&y[0], &bias[0], &from[0], &first[0], n, taps, 4*w.Stride, 4*step*x.Stride)
		} else {
			weighAVX2(&y[0], &bias[0], &from[0], &first[0], n, taps, 4*w.Stride, 4*step*x.Stride)
		}
	}
	if n < len(y) {
		weighGo(y, w, x, k, r, step, n)
	}
}
