package scan

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Conv sets dst to the causal convolution of each channel of x, one sequence, tokens×channels: token t takes
// bias[c] + Σ_k taps[c·width+k]·x[t−width+1+k][c], tokens before the first counting as zeros. bias may be nil. dst must
// not be x.
func Conv(dst, x *tensor.Matrix, taps, bias []float32, width int) {
	if dst.Rows != x.Rows || dst.Cols != x.Cols || len(taps) != x.Cols*width || bias != nil && len(bias) != x.Cols {
		panic("scan: shapes of a convolution do not agree")
	}
	// By tap, so that channels follow each other.
	byTap := make([]float32, len(taps))
	for c := range x.Cols {
		for k := range width {
			byTap[k*x.Cols+c] = taps[c*width+k]
		}
	}
	kernels.Parallel(x.Rows, 16, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			y := dst.Row(t)
			if clear(y); bias != nil {
				copy(y, bias)
			}
			for k := max(0, width-1-t); k < width; k++ {
				w, v := byTap[k*x.Cols:(k+1)*x.Cols], x.Row(t - width + 1 + k)[:len(y)]
				w = w[:len(y)]
				for c := range y {
					y[c] += w[c] * v[c]
				}
			}
		}
	})
}
