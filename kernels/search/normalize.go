package search

import "github.com/llmq/llmq/kernels"

// Largest returns the largest of x in each lane, 0 if none is above it. NaN is none.
func Largest(x []kernels.Lane) (most kernels.Lane) {
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(x) > 0 {
		largest(n, &most, x)
		return most
	}
	for j := range x {
		for i, v := range x[j] {
			if v > most[i] {
				most[i] = v
			}
		}
	}
	return most
}

// Normalize sets x[j] = factor·min(x[j], most), lane by lane, and to 0 what is then not above 0, NaN included. Neither most nor factor is NaN.
func Normalize(x []kernels.Lane, most, factor *kernels.Lane) {
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(x) > 0 {
		normalize(n, x, most, factor)
		return
	}
	for j := range x {
		for i, v := range x[j] {
			v = min(v, most[i]) * factor[i]
			if !(v > 0) {
				v = 0
			}
			x[j][i] = v
		}
	}
}
