// Package kernels holds the few loops that everything else is bounded by: matrix products over plain and quantized
// weights, symmetric rank-k updates, and the element-wise operations of a transformer. Each has a plain Go reference
// that always compiles; faster versions are chosen at run time.
//
// Work is spread over runtime.GOMAXPROCS(0) goroutines. Every output element is summed by one of them in a fixed
// order, so results do not depend on the thread count.
package kernels

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/llmq/llmq/tensor"
)

// Format describes how a block type stores consecutive weights of a row.
type Format struct {
	Name       string // "Q4_K"
	BlockLen   int    // weights in a block
	BlockBytes int    // bytes of a block
	// Unpack is the plain decoder: len(dst) is a multiple of BlockLen, src holds as many blocks.
	Unpack func(dst []float32, src []byte)
}

// RowBytes is the size of cols weights; cols must be a multiple of BlockLen.
func (f *Format) RowBytes(cols int) int { return cols / f.BlockLen * f.BlockBytes }

// Weights is an out×in matrix in a block format, one row after the other.
type Weights struct {
	Rows, Cols int
	Format     *Format
	Data       []byte
}

// Row returns the bytes of row i.
func (w *Weights) Row(i int) []byte {
	n := w.Format.RowBytes(w.Cols)
	return w.Data[i*n : (i+1)*n]
}

// Precision is what matrix products round their inputs to. Sums are always float32.
type Precision int

const (
	// Auto may round inputs to bfloat16 where the machine multiplies those faster.
	Auto Precision = iota
	// F32 keeps activations and unpacked weights in float32.
	F32
)

// Parallel calls f for consecutive ranges that cover [0,n), at least grain long but for the last, on
// runtime.GOMAXPROCS(0) goroutines, and returns when all are done. Ranges are handed out as workers come free: f's
// result for an index must not depend on the range that it came in.
func Parallel(n, grain int, f func(lo, hi int)) {
	grain = max(grain, 1)
	workers := min(runtime.GOMAXPROCS(0), (n+grain-1)/grain)
	if workers <= 1 {
		if n > 0 {
			f(0, n)
		}
		return
	}
	// A few ranges per worker even out their speeds.
	step := max(grain, (n+4*workers-1)/(4*workers))
	var next atomic.Int64
	work := func() {
		for {
			hi := int(next.Add(int64(step)))
			lo := hi - step
			if lo >= n {
				return
			}
			f(lo, min(hi, n))
		}
	}
	var wg sync.WaitGroup
	for range workers - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
}

// MatMul sets dst = X·Wᵀ; X is tokens×in, W out×in in any block format, dst tokens×out.
func MatMul(dst, x *tensor.Matrix, w *Weights, p Precision) {
	checkMatMul(dst, x, w.Rows, w.Cols)
	Parallel(w.Rows, 8, func(lo, hi int) {
		row := make([]float32, w.Cols)
		for o := lo; o < hi; o++ {
			w.Format.Unpack(row, w.Row(o))
			for t := range x.Rows {
				dst.Data[t*dst.Stride+o] = Dot(x.Row(t), row)
			}
		}
	})
}

// MatMulF32 sets dst = X·Wᵀ; X is tokens×in, W out×in, dst tokens×out.
func MatMulF32(dst, x, w *tensor.Matrix) {
	checkMatMul(dst, x, w.Rows, w.Cols)
	Parallel(w.Rows, 8, func(lo, hi int) {
		for o := lo; o < hi; o++ {
			row := w.Row(o)
			for t := range x.Rows {
				dst.Data[t*dst.Stride+o] = Dot(x.Row(t), row)
			}
		}
	})
}

func checkMatMul(dst, x *tensor.Matrix, out, in int) {
	if dst.Rows != x.Rows || dst.Cols != out || x.Cols != in {
		panic("kernels: matmul shapes do not agree")
	}
}

// Dot returns Σ a[i]·b[i] over len(a) elements.
func Dot(a, b []float32) float32 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + (s2 + s3)
}

// Axpy sets dst[i] += alpha·x[i] over len(x) elements.
func Axpy(dst []float32, alpha float32, x []float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] += alpha * v
	}
}

// SyrkTo sets dst += XᵀX; X is tokens×in, dst in×in and symmetric (both triangles are kept).
func SyrkTo(dst, x *tensor.Matrix) {
	Parallel(dst.Rows, 1, func(lo, hi int) {
		for t := range x.Rows {
			row := x.Row(t)
			for i := lo; i < hi; i++ {
				Axpy(dst.Row(i)[:i+1], row[i], row[:i+1])
			}
		}
	})
	for i := range dst.Rows {
		for j := range i {
			dst.Data[j*dst.Stride+i] = dst.Data[i*dst.Stride+j]
		}
	}
}

// GemmNN sets dst += alpha·A·B; A is m×k, B k×n, dst m×n.
func GemmNN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	Parallel(a.Rows, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			for k, v := range a.Row(i) {
				Axpy(dst.Row(i), alpha*v, b.Row(k))
			}
		}
	})
}

// GemmTN sets dst += alpha·Aᵀ·B; A is k×m, B k×n, dst m×n.
func GemmTN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	Parallel(a.Cols, 1, func(lo, hi int) {
		for k := range a.Rows {
			for i := lo; i < hi; i++ {
				Axpy(dst.Row(i), alpha*a.Row(k)[i], b.Row(k))
			}
		}
	})
}

// GemmNT sets dst += alpha·A·Bᵀ; A is m×k, B n×k, dst m×n.
func GemmNT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	Parallel(a.Rows, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			for j := range b.Rows {
				dst.Row(i)[j] += alpha * Dot(a.Row(i), b.Row(j))
			}
		}
	})
}
