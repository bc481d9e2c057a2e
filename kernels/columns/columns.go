// Package columns works on the columns of 16 rows at a time, one row in each lane: GPTQ rounds a column and spreads its
// errors over the next ones.
package columns

import (
	"math"

	"github.com/llmq/llmq/kernels"
)

// Round rounds w + inverse·sum to the nearest of the values scale·q − minimum with q whole in lo..hi, ties to even. It
// sets q to the levels and err to w's own errors w − (scale·q − minimum). Where scale is 0, q is the level nearest to 0.
func Round(q, err, w, sum *kernels.Lane, inverse float32, scale, minimum *kernels.Lane, lo, hi int8) {
	if n := kernels.CurrentTier().Lanes(); n > 0 {
		round(n, q, err, w, sum, inverse, scale, minimum, float32(lo), float32(hi))
		return
	}
	for i := range w {
		var v float32
		if scale[i] != 0 {
			v = (w[i] + float32(inverse*sum[i]) + minimum[i]) / scale[i]
		}
		if !(v > float32(lo)) { // NaN too
			v = float32(lo)
		}
		q[i] = float32(math.RoundToEven(float64(min(v, float32(hi)))))
		err[i] = w[i] - (float32(scale[i]*q[i]) - minimum[i])
	}
}

// updateDepth is how many vectors the assembly adds at a time.
const updateDepth = 8

// Update sets dst[j] += Σ u[k·pitch+j]·x[k] over the k of x, in their order.
func Update(dst []kernels.Lane, u []float32, pitch int, x []kernels.Lane) {
	if len(dst) == 0 || len(x) == 0 {
		return
	}
	_ = u[(len(x)-1)*pitch+len(dst)-1]
	if n := kernels.CurrentTier().Lanes(); n > 0 {
		for len(x) >= updateDepth {
			update(n, dst, u, pitch, x)
			x = x[updateDepth:]
			u = u[min(updateDepth*pitch, len(u)):]
		}
		for k := range x {
			add(n, dst, u[k*pitch:], &x[k])
		}
		return
	}
	for j := range dst {
		for k := range x {
			v := u[k*pitch+j]
			for i := range dst[j] {
				dst[j][i] += float32(v * x[k][i])
			}
		}
	}
}

// Dot returns Σ x[j]·y[j] in each lane; y is as long as x.
func Dot(x, y []kernels.Lane) (sum kernels.Lane) {
	y = y[:len(x)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(x) > 0 {
		dot(n, &sum, x, y)
		return sum
	}
	for j := range x {
		for i := range sum {
			sum[i] += float32(x[j][i] * y[j][i])
		}
	}
	return sum
}

// FromRows sets dst[j][i] = src[i·pitch+j]: group i, which begins at i·pitch, goes to lane i. len(dst) is a multiple
// of 16.
func FromRows(dst []kernels.Lane, src []float32, pitch int) {
	_ = src[15*pitch+len(dst)-1]
	if n := kernels.CurrentTier().Lanes(); n > 0 {
		fromRows(n, dst, src, pitch)
		return
	}
	for i := range kernels.Lanes {
		for j := range dst {
			dst[j][i] = src[i*pitch+j]
		}
	}
}

// ToRows is FromRows' inverse: it sets dst[i·pitch+j] = src[j][i]. len(src) is a multiple of 16.
func ToRows(dst []float32, pitch int, src []kernels.Lane) {
	_ = dst[15*pitch+len(src)-1]
	if n := kernels.CurrentTier().Lanes(); n > 0 {
		toRows(n, dst, pitch, src)
		return
	}
	for j := range src {
		for i, v := range src[j] {
			dst[i*pitch+j] = v
		}
	}
}
