package kernels

import (
	"math/bits"

	"github.com/llmq/llmq/tensor"
)

// fewTokens is the most tokens that are multiplied row by row: packing weights into tiles pays for more.
const fewTokens = 4

// rowProducts multiply n blocks of a row with one, two or four tokens; tokens are rowX bytes apart in x, their results
// rowDst bytes in dst.
type rowProducts [3]func(dst *float32, rowDst int, x *float32, rowX int, src *byte, n int)

// matMulFew is MatMul for few tokens, bound by the memory that the weights come from. Nothing is rounded to bfloat16.
func matMulFew(dst, x *tensor.Matrix, w *Weights) {
	direct, ok := w.Format.rowProducts()
	const grain = 32 // rows
	Parallel(w.Rows, grain, func(lo, hi int) {
		if ok {
			for o := lo; o < hi; o++ {
				for t := 0; t < x.Rows; {
					i := min(bits.Len(uint(x.Rows-t)), len(direct)) - 1
					direct[i](&dst.Data[t*dst.Stride+o], 4*dst.Stride, &x.Data[t*x.Stride], 4*x.Stride, &w.Row(o)[0],
						w.Cols/w.Format.BlockLen)
					t += 1 << i
				}
			}
			return
		}
		// Pieces of a row are unpacked into the L1 cache.
		const piece = 1024
		var row [piece]float32
		for o := lo; o < hi; o++ {
			src := w.Row(o)
			var sums [fewTokens]float32
			for k := 0; k < w.Cols; k += piece {
				part := row[:min(piece, w.Cols-k)]
				Unpack(w.Format, part, src[w.Format.RowBytes(k):w.Format.RowBytes(k+len(part))])
				for t := range x.Rows {
					sums[t] += Dot(x.Row(t)[k:k+len(part)], part)
				}
			}
			for t := range x.Rows {
				dst.Row(t)[o] = sums[t]
			}
		}
	})
}
