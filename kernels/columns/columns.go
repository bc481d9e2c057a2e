// Package columns works on the columns of 16 rows at a time, one row in each lane: GPTQ rounds a column and spreads its
// errors over the next ones.
package columns

import (
	"math"
	"slices"

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

// RoundInTurn rounds columns, at most 8, as Round does, from the first to the last, or with down from the last to the first: column j has
// w[j], sum[j], inverse[j], and the scale and the minimum of group[j]. Its error err[j] then goes to its own sum and those of the columns to
// come: sum[i] += u[j·pitch+i]·err[j]. q, w, sum and inverse are as long as err.
func RoundInTurn(q, err, w, sum []kernels.Lane, inverse, u []float32, pitch int, scale, minimum []kernels.Lane, group *[8]int, lo, hi int8,
	down bool) {
	n := len(err)
	q, w, sum, inverse = q[:n], w[:n], sum[:n], inverse[:n]
	if lanes := kernels.CurrentTier().Lanes(); lanes > 0 && n == len(group) {
		_, last := u[7*pitch+7], slices.Max(group[:])
		_, _ = scale[last], minimum[last]
		roundInTurn(lanes, q, err, w, sum, inverse, u, pitch, scale, minimum, group, float32(lo), float32(hi), down)
		return
	}
	for i := range n {
		j, first, end := i, i, n
		if down {
			j, first, end = n-1-i, 0, n-i
		}
		k := group[j]
		Round(&q[j], &err[j], &w[j], &sum[j], inverse[j], &scale[k], &minimum[k], lo, hi)
		Update(sum[first:end], u[j*pitch+first:], 0, err[j:j+1])
	}
}

// Decode sets dst[j] = scale·level[j] − minimum, lane by lane; dst is as long as level.
func Decode(dst, level []kernels.Lane, scale, minimum *kernels.Lane) {
	dst = dst[:len(level)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(level) > 0 {
		decode(n, dst, level, scale, minimum)
		return
	}
	for j := range level {
		for i, v := range level[j] {
			dst[j][i] = float32(scale[i]*v) - minimum[i]
		}
	}
}

// Shift sets dst[j] += x·a[j] − y·b[j], lane by lane; a and b are as long as dst.
func Shift(dst, a []kernels.Lane, x *kernels.Lane, b []kernels.Lane, y *kernels.Lane) {
	a, b = a[:len(dst)], b[:len(dst)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(dst) > 0 {
		shift(n, dst, a, x, b, y)
		return
	}
	for j := range dst {
		for i := range x {
			dst[j][i] += float32(x[i]*a[j][i]) - float32(y[i]*b[j][i])
		}
	}
}

// ShiftBy is Shift with elements of b that are the same in all lanes.
func ShiftBy(dst, a []kernels.Lane, x *kernels.Lane, b []float32, y *kernels.Lane) {
	a, b = a[:len(dst)], b[:len(dst)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(dst) > 0 {
		shiftBy(n, dst, a, x, b, y)
		return
	}
	for j := range dst {
		for i := range x {
			dst[j][i] += float32(x[i]*a[j][i]) - float32(y[i]*b[j])
		}
	}
}

// Subtract sets dst[j] −= x[j], lane by lane; x is as long as dst.
func Subtract(dst, x []kernels.Lane) {
	x = x[:len(dst)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(dst) > 0 {
		subtract(n, dst, x)
		return
	}
	for j := range dst {
		for i, v := range x[j] {
			dst[j][i] -= v
		}
	}
}

// Differ sets mask[j] to a bit for each lane in which a[j] is not b[j]; a and b are as long as mask.
func Differ(mask []uint16, a, b []kernels.Lane) {
	a, b = a[:len(mask)], b[:len(mask)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(mask) > 0 {
		differ(n, mask, a, b)
		return
	}
	for j := range mask {
		mask[j] = 0
		for i, v := range a[j] {
			if v != b[j][i] {
				mask[j] |= 1 << i
			}
		}
	}
}

// FromCodes sets dst[j][i] = codes[i·pitch+j] for i < rows, in all lanes or less.
func FromCodes(dst []kernels.Lane, codes []int8, pitch, rows int) {
	if kernels.CurrentTier().Lanes() > 0 && rows == kernels.Lanes && len(dst)%8 == 0 && len(dst) > 0 {
		_ = codes[(rows-1)*pitch+len(dst)-1]
		fromCodes(dst, codes, pitch)
		return
	}
	for i := range rows {
		for j, code := range codes[i*pitch:][:len(dst)] {
			dst[j][i] = float32(code)
		}
	}
}

// Update sets dst[j] += Σ u[k·pitch+j]·x[k] over the k of x, in their order.
func Update(dst []kernels.Lane, u []float32, pitch int, x []kernels.Lane) {
	if len(dst) == 0 || len(x) == 0 {
		return
	}
	_ = u[(len(x)-1)*pitch+len(dst)-1]
	if n := kernels.CurrentTier().Lanes(); n > 0 {
		update(n, dst, u, pitch, x)
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
