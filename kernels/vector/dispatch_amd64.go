//go:build !purego

package vector

import "github.com/llmq/llmq/kernels"

// Dot returns Σ a[i]·b[i] over len(a) elements.
func Dot(a, b []float32) float32 {
	b = b[:len(a)]
	if len(a) == 0 {
		return 0
	}
	switch t := kernels.CurrentTier(); {
	case t >= kernels.AVX512:
		return dotAVX512(&a[0], &b[0], len(a))
	case t >= kernels.AVX2:
		return dotAVX2(&a[0], &b[0], len(a))
	}
	return PlainDot(a, b)
}

// Axpy sets dst[i] += alpha·x[i] over len(x) elements.
func Axpy(dst []float32, alpha float32, x []float32) {
	dst = dst[:len(x)]
	if len(x) == 0 {
		return
	}
	switch t := kernels.CurrentTier(); {
	case t >= kernels.AVX512:
		axpyAVX512(&dst[0], &x[0], len(x), alpha)
	case t >= kernels.AVX2:
		axpyAVX2(&dst[0], &x[0], len(x), alpha)
	default:
		PlainAxpy(dst, alpha, x)
	}
}
