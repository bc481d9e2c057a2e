package scan

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// ConvBack sets dx to the gradient at Conv's x for dy, that at its result: token t takes Σ_k taps[c·width+k]·dy[t+width−1−k][c],
// tokens after the last counting as zeros. dx must not be dy.
func ConvBack(dx, dy *tensor.Matrix, taps []float32, width int) {
	if dx.Rows != dy.Rows || dx.Cols != dy.Cols || len(taps) != dy.Cols*width {
		panic("scan: shapes of a convolution do not agree")
	}
	byTap := make([]float32, len(taps))
	for c := range dy.Cols {
		for k := range width {
			byTap[k*dy.Cols+c] = taps[c*width+k]
		}
	}
	kernels.Parallel(dx.Rows, 16, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			x := dx.Row(t)
			clear(x)
			for k := max(0, t+width-dy.Rows); k < width; k++ {
				w, v := byTap[k*dy.Cols:(k+1)*dy.Cols], dy.Row(t + width - 1 - k)[:len(x)]
				w = w[:len(x)]
				for c := range x {
					x[c] += w[c] * v[c]
				}
			}
		}
	})
}
