package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// sumRows is how many rows of a sum are made before they are added to what is there: enough for the products to run at speed. Tests
// take fewer.
var sumRows = 1024

// AddSyrkLower adds XᵀX, on and below the diagonal, to dst as Syrk makes it from zero: each of its elements is summed by itself, then
// added. Where Syrk into a matrix of zeros and an addition would take a second matrix, this takes sumRows rows of one, and x once more,
// rounded; of few rows, which are one block of a product, none. What is above the diagonal becomes undefined.
func AddSyrkLower(dst, x *tensor.Matrix, p kernels.Precision) {
	if dst.Rows != x.Cols || dst.Cols != x.Cols {
		panic("gemm: syrk shapes do not agree")
	}
	addSum(dst, x, x, true, p)
}

// Mirror makes a square matrix symmetric: what is above the diagonal becomes what is below.
func Mirror(m *tensor.Matrix) { mirror(m) }

// AddTN is TN with an alpha of 1 likewise.
func AddTN(dst, a, b *tensor.Matrix, p kernels.Precision) {
	checkGemm(dst, a.Cols, a.Rows, b.Rows, b.Cols)
	addSum(dst, a, b, false, p)
}

// addSum adds AᵀB to dst, a part of its rows after the other; if symmetric, a is b and nothing is added above the diagonal.
func addSum(dst, a, b *tensor.Matrix, symmetric bool, p kernels.Precision) {
	t := tile.For(p)
	sums, m := sumOf, add
	if symmetric {
		m = addLower
	}
	if t != nil && t.Pairs {
		rows := (a.Rows + pairedRows - 1) / pairedRows * (pairedRows / 2)
		cols := a.Cols
		if !symmetric {
			cols += b.Cols
		}
		buf := words.Get(rows * cols)
		defer words.Put(buf)
		a = pairAll(t, buf[:rows*a.Cols], a)
		if symmetric {
			b = a
		} else {
			b = pairAll(t, buf[len(buf)-rows*b.Cols:], b)
		}
		sums = sumOfPairs
	}
	if t != nil && a.Rows <= t.KC { // one block, which is summed in registers
		sums(t, dst, a, b, m)
		return
	}
	buf := words.Get(min(sumRows, dst.Rows) * dst.Cols)
	defer words.Put(buf)
	for lo := 0; lo < dst.Rows; lo += sumRows {
		hi := min(lo+sumRows, dst.Rows)
		part := a.View(0, a.Rows, lo, hi)
		cols := dst.Cols
		if symmetric {
			cols = hi
		}
		sum := tensor.FromSlice(hi-lo, cols, words.Floats(buf[:(hi-lo)*cols]))
		sum.Zero()
		if !symmetric {
			sums(t, sum, part, b, add)
		} else {
			if lo > 0 {
				sums(t, sum.View(0, hi-lo, 0, lo), part, b.View(0, b.Rows, 0, lo), add)
			}
			sums(t, sum.View(0, hi-lo, lo, hi), part, part, m)
		}
		kernels.Parallel(hi-lo, 16, func(from, to int) {
			for i := from; i < to; i++ {
				n := cols
				if symmetric {
					n = lo + i + 1
				}
				vector.Axpy(dst.Row(lo + i)[:n], 1, sum.Row(i)[:n])
			}
		})
	}
}

// sumOf adds AᵀB to dst in a mode that adds.
func sumOf(t *tile.Tiling, dst, a, b *tensor.Matrix, mode mode) {
	switch {
	case t != nil:
		left := tile.ColsOf(a)
		product(t, 1, &left, a.Rows, mode, result{c: dst, b: tile.ColsOf(b)})
	case mode == addLower:
		syrkGo(dst, a)
	default:
		gemmTNGo(dst, 1, a, b)
	}
}

// pairAll is pairRows of all rows of m, as often as productOfRows would call it.
func pairAll(t *tile.Tiling, buf []uint32, m *tensor.Matrix) *tensor.Matrix {
	n := 0
	for r0 := 0; r0 < m.Rows; r0 += pairedRows {
		n += pairRows(kernels.Processors(), t, buf[n*m.Cols:], m.View(r0, min(r0+pairedRows, m.Rows), 0, m.Cols)).Rows
	}
	return tensor.FromSlice(n, m.Cols, words.Floats(buf[:n*m.Cols]))
}

// sumOfPairs is sumOf of rows that pairAll has paired: the blocks of productOfRows, one after the other.
func sumOfPairs(t *tile.Tiling, dst, a, b *tensor.Matrix, mode mode) {
	paired := *t
	paired.Pairs, paired.CopyStrip = false, t.CopyWords
	for r0 := 0; r0 < a.Rows; r0 += pairedRows / 2 {
		r1 := min(r0+pairedRows/2, a.Rows)
		left := tile.ColsOf(a.View(r0, r1, 0, a.Cols))
		product(&paired, 1, &left, r1-r0, mode, result{c: dst, b: tile.ColsOf(b.View(r0, r1, 0, b.Cols))})
	}
}
