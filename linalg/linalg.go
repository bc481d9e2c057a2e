// Package linalg factors symmetric positive definite matrices, such as the Hessians of GPTQ. The algorithms are
// recursive (Gustavson, "Recursion leads to automatic variable blocking for dense linear-algebra algorithms", 1997):
// halves of the matrix meet in kernels' matrix products, which do nearly all of the arithmetic; what is left are diagonal
// blocks, small enough to be done in float64.
package linalg

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/tensor"
)

// diagonal is the largest block that the recursion leaves to the float64 loops. 64² float64 are 32 KiB, one L1 cache.
const diagonal = 64

// Cholesky replaces the lower triangle of a, n×n symmetric, by L with L·Lᵀ = a; it reads only the lower triangle, and the
// upper one becomes undefined. If a is not positive definite, ok is false, pivot the row at which it failed, and a partly
// overwritten.
func Cholesky(a *tensor.Matrix) (ok bool, pivot int) {
	checkSquare(a)
	if pivot = cholesky(a, newInverses(a.Rows), newScratch(a)); pivot >= 0 {
		return false, pivot
	}
	return true, 0
}

// inverses are those of the diagonal blocks of a triangular matrix, which is where triangular systems end.
type inverses []*tensor.Matrix

func newInverses(n int) inverses { return make(inverses, (n+diagonal-1)/diagonal) }

// scratch is room for some columns of a matrix, while products replace them.
type scratch []float32

func newScratch(a *tensor.Matrix) scratch { return make(scratch, a.Rows*min(a.Cols, diagonal)) }

// copy returns a copy of b in s.
func (s scratch) copy(b *tensor.Matrix) *tensor.Matrix {
	x := tensor.FromSlice(b.Rows, b.Cols, s)
	for i := range b.Rows {
		copy(x.Row(i), b.Row(i))
	}
	return x
}

// cholesky returns the row of the first pivot that is not positive, or −1, and fills inv. It leaves the strict upper
// triangle undefined.
func cholesky(a *tensor.Matrix, inv inverses, s scratch) (pivot int) {
	n := a.Rows
	if n <= diagonal {
		if n > 0 {
			inv[0] = tensor.New(n, n)
			return choleskyBlock(a, inv[0])
		}
		return -1
	}
	h := half(n)
	a11, a21, a22 := a.View(0, h, 0, h), a.View(h, n, 0, h), a.View(h, n, h, n)
	if p := cholesky(a11, inv, s); p >= 0 {
		return p
	}
	solveRight(a21, a11, inv, s)
	gemm.NTLower(a22, -1, a21, a21)
	if p := cholesky(a22, inv[h/diagonal:], s); p >= 0 {
		return h + p
	}
	return -1
}

// solveRight sets b = b·L⁻ᵀ, L lower triangular.
func solveRight(b, l *tensor.Matrix, inv inverses, s scratch) {
	byRows(b, l, s, func(b *tensor.Matrix, s scratch) { solveRightRows(b, l, inv, s) })
}

// byRows solves a system for the rows of b, a part of them on each processor: the recursion's many short products would
// else wait for each other's ends.
func byRows(b, l *tensor.Matrix, s scratch, solve func(b *tensor.Matrix, s scratch)) {
	const work = 1 << 21 // multiplications; some ten microseconds
	grain := (b.Rows + kernels.Processors() - 1) / kernels.Processors()
	grain = max(grain, work/max(1, l.Rows*l.Rows))
	width := min(l.Rows, diagonal)
	kernels.Parallel(b.Rows, grain, func(lo, hi int) {
		solve(b.View(lo, hi, 0, b.Cols), s[lo*width:hi*width])
	})
}

func solveRightRows(b, l *tensor.Matrix, inv inverses, s scratch) {
	n := l.Rows
	if n <= diagonal {
		gemm.MatMulF32(b, s.copy(b), inv[0])
		return
	}
	h := half(n)
	b1, b2 := b.View(0, b.Rows, 0, h), b.View(0, b.Rows, h, n)
	solveRightRows(b1, l.View(0, h, 0, h), inv, s)
	gemm.NT(b2, -1, b1, l.View(h, n, 0, h))
	solveRightRows(b2, l.View(h, n, h, n), inv[h/diagonal:], s)
}

// Solve sets b, rows×n, to b·(L·Lᵀ)⁻¹, L being n×n lower triangular as Cholesky leaves it.
func Solve(b, l *tensor.Matrix) {
	checkSquare(l)
	if b.Cols != l.Rows {
		panic("linalg: solve shapes do not agree")
	}
	inv, s := invertBlocks(l), newScratch(b)
	byRows(b, l, s, func(b *tensor.Matrix, s scratch) {
		solveRightRows(b, l, inv, s)
		solveRightLower(b, l, inv, s)
	})
}

// SolveTransposed sets b, rows×n, to b·L⁻ᵀ, L being n×n lower triangular as Cholesky leaves it.
func SolveTransposed(b, l *tensor.Matrix) {
	checkSquare(l)
	if b.Cols != l.Rows {
		panic("linalg: the system's shapes do not agree")
	}
	solveRight(b, l, invertBlocks(l), newScratch(b))
}

// solveRightLower sets b = b·L⁻¹, L lower triangular.
func solveRightLower(b, l *tensor.Matrix, inv inverses, s scratch) {
	n := l.Rows
	if n <= diagonal {
		if n > 0 {
			x := s.copy(b)
			b.Zero()
			gemm.NN(b, 1, x, inv[0], kernels.F32)
		}
		return
	}
	h := half(n)
	b1, b2 := b.View(0, b.Rows, 0, h), b.View(0, b.Rows, h, n)
	solveRightLower(b2, l.View(h, n, h, n), inv[h/diagonal:], s)
	gemm.NN(b1, -1, b2, l.View(h, n, 0, h), kernels.F32)
	solveRightLower(b1, l.View(0, h, 0, h), inv, s)
}

// invertBlocks returns the inverses of l's diagonal blocks.
func invertBlocks(l *tensor.Matrix) inverses {
	inv := newInverses(l.Rows)
	kernels.Parallel(len(inv), 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			end := min((i+1)*diagonal, l.Rows)
			block := l.View(i*diagonal, end, i*diagonal, end)
			var values [diagonal][diagonal]float64
			for r := range block.Rows {
				for c, v := range block.Row(r)[:r+1] {
					values[r][c] = float64(v)
				}
			}
			inv[i] = tensor.New(block.Rows, block.Rows)
			invertBlock(inv[i], &values)
		}
	})
	return inv
}

// choleskyBlock is cholesky row by row in float64.
func choleskyBlock(a, inv *tensor.Matrix) (pivot int) {
	n := a.Rows
	var l [diagonal][diagonal]float64
	for i := range n {
		row := a.Row(i)
		for j := range i + 1 {
			s := float64(row[j]) - dot(l[i][:j], l[j][:j])
			if j < i {
				l[i][j] = s / l[j][j]
				continue
			}
			if !(s > 0) || math.IsInf(s, 1) {
				return i
			}
			l[i][i] = math.Sqrt(s)
		}
	}
	for i := range n {
		for j := range i + 1 {
			a.Row(i)[j] = float32(l[i][j])
		}
	}
	invertBlock(inv, &l)
	return -1
}

// dot sums in four parts, which do not wait for each other.
func dot(a, b []float64) float64 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float64
	k := 0
	for ; k+4 <= len(a); k += 4 {
		s0 += a[k] * b[k]
		s1 += a[k+1] * b[k+1]
		s2 += a[k+2] * b[k+2]
		s3 += a[k+3] * b[k+3]
	}
	for ; k < len(a); k++ {
		s0 += a[k] * b[k]
	}
	return (s0 + s1) + (s2 + s3)
}

// invertBlock sets the lower triangle of dst to the inverse of l's, by forward substitution.
func invertBlock(dst *tensor.Matrix, l *[diagonal][diagonal]float64) {
	var x [diagonal][diagonal]float64
	for i := range dst.Rows {
		d := 1 / l[i][i]
		for k := range i {
			v := l[i][k]
			for j := range k + 1 {
				x[i][j] -= v * x[k][j]
			}
		}
		for j := range i {
			x[i][j] *= d
		}
		x[i][i] = d
	}
	for i := range dst.Rows {
		for j := range i + 1 {
			dst.Row(i)[j] = float32(x[i][j])
		}
	}
}

// half splits n so that the first part is a multiple of the diagonal block.
func half(n int) int { return (n/2 + diagonal - 1) / diagonal * diagonal }

func checkSquare(a *tensor.Matrix) {
	if a.Rows != a.Cols {
		panic("linalg: matrix is not square")
	}
}
