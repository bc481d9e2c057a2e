// Package kernels holds the few loops that everything else is bounded by: matrix products over plain and quantized
// weights, symmetric rank-k updates, and the element-wise operations of a transformer. Each has a plain Go reference
// that always compiles; faster versions, in assembly that kernels/_asm generates, are chosen at run time.
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

//go:generate go run -C _asm . -dir ..

// Format describes how a block type stores consecutive weights of a row.
type Format struct {
	Name       string // "Q4_K"
	BlockLen   int    // weights in a block
	BlockBytes int    // bytes of a block
	// Unpack is the plain decoder: len(dst) is a multiple of BlockLen, src holds as many blocks.
	Unpack func(dst []float32, src []byte)
	// Levels is nil for the floating-point types.
	Levels *LevelFormat
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

// Rounds says whether products round their inputs to bfloat16: p allows it, and the tier in use is faster for it.
func (p Precision) Rounds() bool { return p == Auto && CurrentTier() == AVX512BF16 }

// Parallel calls f for consecutive ranges that cover [0,n), at least grain long but for the last, on
// runtime.GOMAXPROCS(0) goroutines, and returns when all are done. Ranges are handed out as workers come free: f's
// result for an index must not depend on the range that it came in.
func Parallel(n, grain int, f func(lo, hi int)) {
	grain = max(grain, 1)
	// A few ranges per worker even out their speeds.
	step := max(grain, (n+4*runtime.GOMAXPROCS(0)-1)/(4*runtime.GOMAXPROCS(0)))
	spread((n+step-1)/step, runtime.GOMAXPROCS(0), func(i int) { f(i*step, min((i+1)*step, n)) })
}

// spread calls f for each i < n, in order as workers come free.
func spread(n, workers int, f func(i int)) {
	if workers = min(workers, n); workers <= 1 {
		for i := range n {
			f(i)
		}
		return
	}
	var next atomic.Int64
	work := func() {
		for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
			f(i)
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
func MatMul(dst, x *tensor.Matrix, w *Weights, p Precision) { MatMulMany(x, p, Product{dst, w}) }

// Product is one of several products that share their inputs.
type Product struct {
	Dst *tensor.Matrix // tokens×out
	W   *Weights       // out×in
}

// MatMulMany is MatMul of x, tokens×in, for each of the products: x is rounded and packed once for all of them.
func MatMulMany(x *tensor.Matrix, p Precision, products ...Product) {
	t := tiles(p)
	few := x.Rows <= fewTokens && x.Rows > 0 && x.Cols > 0
	a := rowsOperand(x)
	var results []result
	for _, pr := range products {
		checkMatMul(pr.Dst, x, pr.W.Rows, pr.W.Cols)
		switch {
		case !t.takes(pr.W):
			matMulGo(pr.Dst, x, pr.W)
		case few:
			matMulFew(pr.Dst, x, pr.W, p)
		default:
			results = append(results, result{pr.Dst, weightsOperand(pr.W)})
		}
	}
	if len(results) > 0 {
		t.product(1, &a, x.Cols, store, results...)
	}
}

// MatMulAdd sets dst += X·Wᵀ; shapes are MatMul's.
func MatMulAdd(dst, x *tensor.Matrix, w *Weights, p Precision) {
	checkMatMul(dst, x, w.Rows, w.Cols)
	t := tiles(p)
	if x.Rows > fewTokens && t.takes(w) {
		a := rowsOperand(x)
		t.product(1, &a, x.Cols, add, result{dst, weightsOperand(w)})
		return
	}
	buf := words.get(dst.Rows * dst.Cols)
	defer words.put(buf)
	sum := tensor.FromSlice(dst.Rows, dst.Cols, floats(buf))
	MatMul(sum, x, w, p)
	Add(dst, sum)
}

// MatMulF32 sets dst = X·Wᵀ; X is tokens×in, W out×in, dst tokens×out.
func MatMulF32(dst, x, w *tensor.Matrix) {
	checkMatMul(dst, x, w.Rows, w.Cols)
	t := tiles(F32)
	if t == nil {
		matMulF32Go(dst, x, w)
		return
	}
	a := rowsOperand(x)
	t.product(1, &a, x.Cols, store, result{dst, rowsOperand(w)})
}

func checkMatMul(dst, x *tensor.Matrix, out, in int) {
	if dst.Rows != x.Rows || dst.Cols != out || x.Cols != in {
		panic("kernels: matmul shapes do not agree")
	}
}

// SyrkTo sets dst += XᵀX; X is tokens×in, dst in×in and symmetric (both triangles are kept).
//
// Tokens are summed in registers in blocks of at most 512, and the blocks' sums added to dst: for n tokens the error of
// an element is at most (512 + n/512)·2⁻²⁴·Σ|x_i·x_j|, and about the root of that in practice. If p.Rounds(), the blocks
// are of 1024, and inputs are first rounded, by at most 2⁻⁸ of themselves.
func SyrkTo(dst, x *tensor.Matrix, p Precision) {
	SyrkLowerTo(dst, x, p)
	Mirror(dst)
}

// SyrkLowerTo is SyrkTo for the lower triangle of dst alone; what is above the diagonal becomes undefined. Mirror
// completes it, once after many updates.
func SyrkLowerTo(dst, x *tensor.Matrix, p Precision) {
	if dst.Rows != x.Cols || dst.Cols != x.Cols {
		panic("kernels: syrk shapes do not agree")
	}
	t := tiles(p)
	if t == nil {
		syrkGo(dst, x)
		return
	}
	t.productOfRows(dst, 1, x, x, addLower)
}

// Mirror copies the lower triangle of a square matrix onto the upper one.
func Mirror(m *tensor.Matrix) {
	if m.Rows != m.Cols {
		panic("kernels: mirror of a matrix that is not square")
	}
	// Square blocks keep the pages and lines that are written by columns near until they are full.
	const block = 64
	t := tiles(F32)
	Parallel((m.Rows+block-1)/block, 1, func(lo, hi int) {
		for j0 := lo * block; j0 < min(hi*block, m.Rows); j0 += block {
			j1 := min(j0+block, m.Rows)
			for i0 := 0; i0 < j0; i0 += block {
				if t != nil && j1-j0 == block {
					for j := j0; j < j1; j += t.lanes {
						t.transpose(word(&m.Data[i0*m.Stride+j]), 4*m.Stride, word(&m.Data[j*m.Stride+i0]), 4*m.Stride,
							block/t.lanes)
					}
					continue
				}
				mirror(m, j0, j1, i0, i0+block)
			}
			mirror(m, j0, j1, j0, j1)
		}
	})
}

// mirror copies what is below the diagonal in rows [j0,j1) and columns [i0,i1).
func mirror(m *tensor.Matrix, j0, j1, i0, i1 int) {
	for j := j0; j < j1; j++ {
		row := m.Row(j)
		for i := i0; i < min(i1, j); i++ {
			m.Data[i*m.Stride+j] = row[i]
		}
	}
}

// GemmNN sets dst += alpha·A·B; A is m×k, B k×n, dst m×n.
func GemmNN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, p Precision) {
	checkGemm(dst, a.Rows, a.Cols, b.Rows, b.Cols)
	t := tiles(p)
	if t == nil {
		gemmNNGo(dst, alpha, a, b)
		return
	}
	left := rowsOperand(a)
	t.product(alpha, &left, a.Cols, add, result{dst, colsOperand(b)})
}

// GemmTN sets dst += alpha·Aᵀ·B; A is k×m, B k×n, dst m×n.
func GemmTN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, p Precision) {
	checkGemm(dst, a.Cols, a.Rows, b.Rows, b.Cols)
	t := tiles(p)
	if t == nil {
		gemmTNGo(dst, alpha, a, b)
		return
	}
	t.productOfRows(dst, alpha, a, b, add)
}

// GemmNT sets dst += alpha·A·Bᵀ; A is m×k, B n×k, dst m×n.
func GemmNT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	gemmNT(dst, alpha, a, b, add)
}

// GemmNTLower is GemmNT for the part of dst on and below the diagonal; what is above becomes undefined.
func GemmNTLower(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	gemmNT(dst, alpha, a, b, addLower)
}

func gemmNT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, mode mode) {
	checkGemm(dst, a.Rows, a.Cols, b.Cols, b.Rows)
	t := tiles(F32)
	if t == nil {
		gemmNTGo(dst, alpha, a, b, mode == addLower)
		return
	}
	left := rowsOperand(a)
	t.product(alpha, &left, a.Cols, mode, result{dst, rowsOperand(b)})
}

func checkGemm(dst *tensor.Matrix, m, k, k2, n int) {
	if dst.Rows != m || dst.Cols != n || k != k2 {
		panic("kernels: gemm shapes do not agree")
	}
}
