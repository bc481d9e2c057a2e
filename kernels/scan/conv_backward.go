package scan

import "github.com/llmq/llmq/tensor"

// ConvBack sets dx to the gradient at Conv's x for dy, that at its result: token t takes Σ_k taps[c·width+k]·dy[t+width−1−k][c],
// tokens after the last counting as zeros. dx must not be dy.
func ConvBack(dx, dy *tensor.Matrix, taps []float32, width int) {
	if dx.Rows != dy.Rows || dx.Cols != dy.Cols || len(taps) != dy.Cols*width {
		panic("scan: shapes of a convolution do not agree")
	}
	convolve(dx, dy, byTap(taps, nil, width), func(t int) (k, row int) {
		k = max(0, t+width-dy.Rows)
		return k, t + width - 1 - k
	}, -1)
}
