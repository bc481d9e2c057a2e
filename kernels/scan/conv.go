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
	convolve(dst, x, byTap(taps, bias, width), func(t int) (k, row int) {
		k = max(0, width-1-t)
		return k, t - width + 1 + k
	}, 1)
}

// byTap returns the bias, or zeros, and then each tap as a row of its own, so that channels follow each other.
func byTap(taps, bias []float32, width int) *tensor.Matrix {
	w := tensor.New(width+1, len(taps)/max(width, 1))
	copy(w.Row(0), bias)
	for k := range width {
		row := w.Row(1 + k)
		for c := range row {
			row[c] = taps[c*width+k]
		}
	}
	return w
}

// channels is how many channels are taken through all tokens of a task: those of a tap stay in the cache.
const channels = 1024

// convolve sets row t of dst to w's first row plus Σ_k w_k ⊙ x_r, over w's other rows from k on and over x's rows from r on, each step
// after the one before, where first gives k and r.
func convolve(dst, x, w *tensor.Matrix, first func(t int) (k, r int), step int) {
	kernels.Parallel(dst.Rows, 16, func(lo, hi int) {
		for c := 0; c < dst.Cols; c += channels {
			end := min(c+channels, dst.Cols)
			xs, ws := x.View(0, x.Rows, c, end), w.View(0, w.Rows, c, end)
			for t := lo; t < hi; t++ {
				y := dst.Row(t)[c:end]
				if k, r := first(t); 1+k < w.Rows {
					weigh(y, ws, xs, 1+k, r, step)
				} else {
					copy(y, ws.Row(0))
				}
			}
		}
	})
}

// weighGo is weigh of the channels from c on: y = w_0 + Σ_i w_{k+i} ⊙ x_{r+i·step} over all rows of w from k on.
func weighGo(y []float32, w, x *tensor.Matrix, k, r, step, c int) {
	y = y[c:]
	for copy(y, w.Row(0)[c:]); k < w.Rows; k, r = k+1, r+step {
		tap, v := w.Row(k)[c:][:len(y)], x.Row(r)[c:][:len(y)]
		for i := range y {
			y[i] += tap[i] * v[i]
		}
	}
}
