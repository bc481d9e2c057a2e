// Package linalg factors symmetric positive definite matrices, such as the Hessians of GPTQ. The algorithms are
// recursive (Gustavson, "Recursion leads to automatic variable blocking for dense linear-algebra algorithms", 1997):
// halves of the matrix meet in kernels' matrix products, which do nearly all of the arithmetic; what is left are diagonal
// blocks, small enough to be done in float64.
package linalg

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// diagonal is the largest block that the recursion leaves to the float64 loops. 64² float64 are 32 KiB, one L1 cache.
const diagonal = 64

// Cholesky replaces the lower triangle of a, n×n symmetric, by L with L·Lᵀ = a; it reads only the lower triangle and
// sets the upper one to zero. If a is not positive definite, ok is false, pivot the row at which it failed, and a
// partly overwritten.
func Cholesky(a *tensor.Matrix) (ok bool, pivot int) {
	checkSquare(a)
	if pivot = cholesky(a); pivot >= 0 {
		return false, pivot
	}
	for i := range a.Rows {
		clear(a.Row(i)[i+1:])
	}
	return true, 0
}

// cholesky returns the row of the first pivot that is not positive, or −1. It leaves the strict upper triangle
// undefined.
func cholesky(a *tensor.Matrix) (pivot int) {
	n := a.Rows
	if n <= diagonal {
		return choleskyBlock(a)
	}
	h := half(n)
	a11, a21, a22 := a.View(0, h, 0, h), a.View(h, n, 0, h), a.View(h, n, h, n)
	if p := cholesky(a11); p >= 0 {
		return p
	}
	solveRight(a21, a11)
	kernels.GemmNT(a22, -1, a21, a21)
	if p := cholesky(a22); p >= 0 {
		return h + p
	}
	return -1
}

// solveRight sets b = b·L⁻ᵀ, L lower triangular.
func solveRight(b, l *tensor.Matrix) {
	n := l.Rows
	if n <= diagonal {
		inv := l.Clone()
		for i := range n {
			clear(inv.Row(i)[i+1:])
		}
		invertBlock(inv)
		x := b.Clone()
		b.Zero()
		kernels.GemmNT(b, 1, x, inv)
		return
	}
	h := half(n)
	b1, b2 := b.View(0, b.Rows, 0, h), b.View(0, b.Rows, h, n)
	solveRight(b1, l.View(0, h, 0, h))
	kernels.GemmNT(b2, -1, b1, l.View(h, n, 0, h))
	solveRight(b2, l.View(h, n, h, n))
}

// InvertLower replaces the lower triangle of l by its inverse; it neither reads nor writes above the diagonal.
// The diagonal must not hold a zero.
func InvertLower(l *tensor.Matrix) {
	checkSquare(l)
	n := l.Rows
	if n <= diagonal {
		invertBlock(l)
		return
	}
	// ⎡A   ⎤⁻¹   ⎡    A⁻¹       ⎤
	// ⎣B  C⎦   = ⎣−C⁻¹·B·A⁻¹ C⁻¹⎦
	h := half(n)
	a, b, c := l.View(0, h, 0, h), l.View(h, n, 0, h), l.View(h, n, h, n)
	InvertLower(a)
	InvertLower(c)
	multiplyRight(b, a, -1)
	multiplyLeft(c, b)
}

// multiplyRight sets b = alpha·b·T, T lower triangular.
func multiplyRight(b, t *tensor.Matrix, alpha float32) {
	n := t.Rows
	if n <= diagonal {
		x, low := b.Clone(), lower(t)
		b.Zero()
		kernels.GemmNN(b, alpha, x, low)
		return
	}
	h := half(n)
	b1, b2 := b.View(0, b.Rows, 0, h), b.View(0, b.Rows, h, n)
	multiplyRight(b1, t.View(0, h, 0, h), alpha)
	kernels.GemmNN(b1, alpha, b2, t.View(h, n, 0, h))
	multiplyRight(b2, t.View(h, n, h, n), alpha)
}

// multiplyLeft sets b = T·b, T lower triangular.
func multiplyLeft(t, b *tensor.Matrix) {
	n := t.Rows
	if n <= diagonal {
		x, low := b.Clone(), lower(t)
		b.Zero()
		kernels.GemmNN(b, 1, low, x)
		return
	}
	h := half(n)
	b1, b2 := b.View(0, h, 0, b.Cols), b.View(h, n, 0, b.Cols)
	multiplyLeft(t.View(h, n, h, n), b2)
	kernels.GemmNN(b2, 1, t.View(h, n, 0, h), b1)
	multiplyLeft(t.View(0, h, 0, h), b1)
}

// InverseFactor returns the upper triangular U with UᵀU = h⁻¹, which GPTQ reads row by row. h is symmetric and only
// its lower triangle is read. ok is false if h is not positive definite.
//
// The inverse itself is never formed: with J the reversal of rows, J·h·J = L·Lᵀ gives U = J·L⁻¹·J.
func InverseFactor(h *tensor.Matrix) (u *tensor.Matrix, ok bool) {
	checkSquare(h)
	n := h.Rows
	u = tensor.New(n, n)
	// Reversing both rows and columns maps the lower triangle onto the upper one; transpose on the way.
	for i := range n {
		for j, v := range h.Row(i)[:i+1] {
			u.Data[(n-1-j)*n+n-1-i] = v
		}
	}
	if cholesky(u) >= 0 {
		return nil, false
	}
	InvertLower(u)
	for i := range n {
		clear(u.Row(i)[i+1:])
	}
	for i, j := 0, n*n-1; i < j; i, j = i+1, j-1 {
		u.Data[i], u.Data[j] = u.Data[j], u.Data[i]
	}
	return u, true
}

// choleskyBlock is cholesky row by row in float64.
func choleskyBlock(a *tensor.Matrix) (pivot int) {
	n := a.Rows
	var l [diagonal][diagonal]float64
	for i := range n {
		row := a.Row(i)
		for j := range i + 1 {
			s := float64(row[j])
			for k := range j {
				s -= l[i][k] * l[j][k]
			}
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
	return -1
}

// invertBlock is InvertLower by forward substitution in float64.
func invertBlock(l *tensor.Matrix) {
	n := l.Rows
	var x [diagonal][diagonal]float64
	for i := range n {
		row := l.Row(i)
		d := 1 / float64(row[i])
		for k := range i {
			v := float64(row[k])
			for j := range k + 1 {
				x[i][j] -= v * x[k][j]
			}
		}
		for j := range i {
			x[i][j] *= d
		}
		x[i][i] = d
	}
	for i := range n {
		for j := range i + 1 {
			l.Row(i)[j] = float32(x[i][j])
		}
	}
}

// half splits n so that the first part is a multiple of the diagonal block.
func half(n int) int { return (n/2 + diagonal - 1) / diagonal * diagonal }

// lower returns a copy of t's lower triangle.
func lower(t *tensor.Matrix) *tensor.Matrix {
	c := t.Clone()
	for i := range c.Rows {
		clear(c.Row(i)[i+1:])
	}
	return c
}

func checkSquare(a *tensor.Matrix) {
	if a.Rows != a.Cols {
		panic("linalg: matrix is not square")
	}
}
