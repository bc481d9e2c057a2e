package gemm

import (
	"math/bits"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// FewTokens is the most tokens that are multiplied row by row, most inputs as they are: packing weights into tiles pays for more.
const FewTokens = 4

// rowProducts multiply n runs of a row (see unpack.Decoder) with one, two or four tokens; tokens are rowX bytes apart in x, their
// results rowDst bytes in dst.
type rowProducts [3]func(dst *float32, rowDst int, x *float32, rowX int, src *byte, n int)

// matMulFew is MatMul for few tokens, bound by the memory that the weights come from. Only Q4_K rounds inputs to bfloat16,
// and only if p allows it.
func matMulFew(dst, x *tensor.Matrix, w *kernels.Weights, p kernels.Precision) {
	if run, ok := productsBF16Of(w.Format, p); ok {
		matMulFewBF16(dst, x, w, run)
		return
	}
	direct, ok := productsOf(w.Format)
	run := unpack.Run(w.Format)
	ok = ok && w.Cols%run == 0
	const grain = 32 // rows
	kernels.Parallel(w.Rows, grain, func(lo, hi int) {
		if ok {
			for o := lo; o < hi; o++ {
				for t := 0; t < x.Rows; {
					i := min(bits.Len(uint(x.Rows-t)), len(direct)) - 1
					direct[i](&dst.Data[t*dst.Stride+o], 4*dst.Stride, &x.Data[t*x.Stride], 4*x.Stride, &w.Row(o)[0],
						w.Cols/run)
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
			var sums [FewTokens]float32
			for k := 0; k < w.Cols; k += piece {
				part := row[:min(piece, w.Cols-k)]
				unpack.F32(w.Format, part, src[w.Format.RowBytes(k):w.Format.RowBytes(k+len(part))])
				for t := range x.Rows {
					sums[t] += vector.Dot(x.Row(t)[k:k+len(part)], part)
				}
			}
			for t := range x.Rows {
				dst.Row(t)[o] = sums[t]
			}
		}
	})
}

// matMulFewBF16 is matMulFew with inputs packed for products that take them in bfloat16.
func matMulFewBF16(dst, x *tensor.Matrix, w *kernels.Weights, products rowProductsBF16) {
	blocks := w.Cols / w.Format.BlockLen
	buf := words.Get(x.Rows * blocks * blockQ4_K)
	defer words.Put(buf)
	for t := range x.Rows {
		packQ4_K(buf[t*blocks*blockQ4_K:], x.Row(t))
	}
	const grain = 32 // rows
	kernels.Parallel(w.Rows, grain, func(lo, hi int) {
		for o := lo; o < hi; o++ {
			for t := 0; t < x.Rows; {
				i := min(bits.Len(uint(x.Rows-t)), len(products)) - 1
				products[i](&dst.Data[t*dst.Stride+o], 4*dst.Stride, &buf[t*blocks*blockQ4_K], 4*blocks*blockQ4_K,
					&w.Row(o)[0], blocks)
				t += 1 << i
			}
		}
	})
}

// rowProductsBF16 are rowProducts of packed tokens.
type rowProductsBF16 [3]func(dst *float32, rowDst int, x *uint32, rowX int, src *byte, n int)

// blockQ4_K is the size in words of a Q4_K block's inputs: 256 bfloat16 values and the sum of each group's 32.
const blockQ4_K = 256/2 + 8

// packQ4_K rounds a token's inputs to bfloat16, in the order in which dotQ4_KBF16 unpacks weights. The sums are of the
// rounded values, which is what the minimum of a group is multiplied with.
func packQ4_K(dst []uint32, x []float32) {
	for ; len(x) > 0; x, dst = x[256:], dst[blockQ4_K:] {
		var rounded [256]uint32
		for i, v := range x[:256] {
			rounded[i] = uint32(tensor.ToBF16(v))
		}
		for i := range 128 {
			// Word i holds two inputs of half h, whose lane l is of the group in nibble g of pair p of groups, at bytes
			// 4e+j and 4e+j+2.
			h, g, j, l := i/64, i/32%2, i/16%2, i%16
			p, e := 2*h+l/8, l%8
			from := 64*p + 32*g + 4*e + j
			dst[i] = rounded[from] | rounded[from+2]<<16
		}
		sums := words.Floats(dst[128:blockQ4_K])
		for g := range sums {
			var sum float32
			for _, v := range rounded[32*g : 32*g+32] {
				sum += tensor.BF16(uint16(v))
			}
			sums[g] = sum
		}
	}
}
