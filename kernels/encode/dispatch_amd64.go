//go:build !purego

package encode

import "github.com/llmq/llmq/kernels"

// wholeF16 encodes as many values as the vector loop takes, and returns how many.
func wholeF16(dst []byte, src []float32) int {
	n := len(src) &^ 15
	if n == 0 || kernels.CurrentTier() < kernels.AVX2 {
		return 0
	}
	_ = dst[2*n-1]
	encodeF16AVX2(&dst[0], &src[0], n, MaxF16)
	return n
}

func wholeBF16(dst []byte, src []float32) int {
	n := len(src) &^ 15
	if n == 0 || kernels.CurrentTier() < kernels.AVX2 {
		return 0
	}
	_ = dst[2*n-1]
	encodeBF16AVX2(&dst[0], &src[0], n, MaxBF16)
	return n
}

func roundQ4_0(lanes int, dst []byte, x, scale []float32) {
	if lanes == kernels.Lanes {
		roundQ4_0AVX512(&dst[0], &x[0], &scale[0], len(scale))
		return
	}
	roundQ4_0AVX2(&dst[0], &x[0], &scale[0], len(scale))
}

func roundQ8_0(lanes int, dst []byte, x, scale []float32) {
	if lanes == kernels.Lanes {
		roundQ8_0AVX512(&dst[0], &x[0], &scale[0], len(scale))
		return
	}
	roundQ8_0AVX2(&dst[0], &x[0], &scale[0], len(scale))
}
