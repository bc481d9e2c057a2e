package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// This file holds the plain products: what tests compare the fast ones with, and what runs where there is no assembly.

func matMulGo(dst, x *tensor.Matrix, w *kernels.Weights) {
	kernels.Parallel(w.Rows, 8, func(lo, hi int) {
		row := make([]float32, w.Cols)
		for o := lo; o < hi; o++ {
			w.Format.Unpack(row, w.Row(o))
			for t := range x.Rows {
				dst.Data[t*dst.Stride+o] = vector.PlainDot(x.Row(t), row)
			}
		}
	})
}

func matMulF32Go(dst, x, w *tensor.Matrix) {
	kernels.Parallel(w.Rows, 8, func(lo, hi int) {
		for o := lo; o < hi; o++ {
			row := w.Row(o)
			for t := range x.Rows {
				dst.Data[t*dst.Stride+o] = vector.PlainDot(x.Row(t), row)
			}
		}
	})
}

func matMulLowerGo(dst, x, l *tensor.Matrix) {
	kernels.Parallel(l.Rows, 8, func(lo, hi int) {
		for o := lo; o < hi; o++ {
			row := l.Row(o)[:o+1]
			for t := range x.Rows {
				dst.Data[t*dst.Stride+o] = vector.PlainDot(x.Row(t)[:o+1], row)
			}
		}
	})
}

// syrkGo sets the lower triangle of dst += XᵀX.
func syrkGo(dst, x *tensor.Matrix) {
	kernels.Parallel(dst.Rows, 1, func(lo, hi int) {
		for t := range x.Rows {
			row := x.Row(t)
			for i := lo; i < hi; i++ {
				vector.PlainAxpy(dst.Row(i)[:i+1], row[i], row[:i+1])
			}
		}
	})
}

func gemmNNGo(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	kernels.Parallel(a.Rows, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			for k, v := range a.Row(i) {
				vector.PlainAxpy(dst.Row(i), alpha*v, b.Row(k))
			}
		}
	})
}

func gemmTNGo(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	kernels.Parallel(a.Cols, 1, func(lo, hi int) {
		for k := range a.Rows {
			for i := lo; i < hi; i++ {
				vector.PlainAxpy(dst.Row(i), alpha*a.Row(k)[i], b.Row(k))
			}
		}
	})
}

// gemmNTGo keeps to the part of dst on and below the diagonal if lower.
func gemmNTGo(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, lower bool) {
	kernels.Parallel(a.Rows, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			n := b.Rows
			if lower {
				n = min(n, i+1)
			}
			for j := range n {
				dst.Row(i)[j] += alpha * vector.PlainDot(a.Row(i), b.Row(j))
			}
		}
	})
}
