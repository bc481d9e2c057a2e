package kernels

import "math"

// Column-wise work on 16 rows at a time, one in each lane: GPTQ rounds a column and spreads its errors over the next ones.

// RoundLanes rounds w + inverse·sum to the nearest of the values scale·q − minimum with q whole in lo..hi, ties to even. It
// sets q to the levels and err to w's own errors w − (scale·q − minimum). Where scale is 0, q is the level nearest to 0.
func RoundLanes(q, err, w, sum *Lane, inverse float32, scale, minimum *Lane, lo, hi int8) {
	if n := lanes(); n > 0 {
		roundLanes(n, q, err, w, sum, inverse, scale, minimum, float32(lo), float32(hi))
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

// UpdateLanes sets dst[j] += Σ u[k·pitch+j]·x[k] over the k of x, in their order.
func UpdateLanes(dst []Lane, u []float32, pitch int, x []Lane) {
	if len(dst) == 0 || len(x) == 0 {
		return
	}
	_ = u[(len(x)-1)*pitch+len(dst)-1]
	if n := lanes(); n > 0 {
		for len(x) >= updateDepth {
			updateLanes(n, dst, u, pitch, x)
			x = x[updateDepth:]
			u = u[min(updateDepth*pitch, len(u)):]
		}
		for k := range x {
			addLanes(n, dst, u[k*pitch:], &x[k])
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

// DotLanes returns Σ x[j]·y[j] in each lane; y is as long as x.
func DotLanes(x, y []Lane) (sum Lane) {
	y = y[:len(x)]
	if n := lanes(); n > 0 && len(x) > 0 {
		dotLanes(n, &sum, x, y)
		return sum
	}
	for j := range x {
		for i := range sum {
			sum[i] += float32(x[j][i] * y[j][i])
		}
	}
	return sum
}

// RowsFromLanes is TransposeLanes' inverse: it sets dst[i·pitch+j] = src[j][i]. len(src) is a multiple of 16.
func RowsFromLanes(dst []float32, pitch int, src []Lane) {
	_ = dst[15*pitch+len(src)-1]
	if n := lanes(); n > 0 {
		rowsFromLanes(n, dst, pitch, src)
		return
	}
	for j := range src {
		for i, v := range src[j] {
			dst[i*pitch+j] = v
		}
	}
}
