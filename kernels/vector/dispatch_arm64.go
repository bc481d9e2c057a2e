//go:build !purego

package vector

import "github.com/llmq/llmq/kernels"

// Dot returns Σ a[i]·b[i] over len(a) elements.
func Dot(a, b []float32) float32 {
	b = b[:len(a)]
	n := len(a) &^ 15
	if n == 0 || kernels.CurrentTier() < kernels.NEON {
		return PlainDot(a, b)
	}
	return dotNEON(&a[0], &b[0], n) + PlainDot(a[n:], b[n:])
}

// Axpy sets dst[i] += alpha·x[i] over len(x) elements.
func Axpy(dst []float32, alpha float32, x []float32) {
	dst = dst[:len(x)]
	n := len(x) &^ 15
	if n == 0 || kernels.CurrentTier() < kernels.NEON {
		PlainAxpy(dst, alpha, x)
		return
	}
	axpyNEON(&dst[0], &x[0], n, alpha)
	PlainAxpy(dst[n:], alpha, x[n:])
}

// dotNEON returns Σ a[i]·b[i]; n is a multiple of 16.
//
//go:noescape
func dotNEON(a, b *float32, n int) float32

// axpyNEON sets dst[i] += alpha·x[i]; n is a multiple of 16.
//
//go:noescape
func axpyNEON(dst, x *float32, n int, alpha float32)
