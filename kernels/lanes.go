package kernels

import "math"

// Column-wise work on 16 rows at a time, one in each lane: GPTQ rounds a column and spreads its errors over the next ones.

// RoundLanes rounds x to the nearest of the values scale·q − minimum with q whole in lo..hi, ties to even, and returns the
// levels q and the errors x − (scale·q − minimum) over u. Where scale is 0, q is the level nearest to 0.
func RoundLanes(x, scale, minimum *Lane, u float32, lo, hi int8) (q, err Lane) {
	if n := lanes(); n > 0 {
		roundLanes(n, &q, &err, x, scale, minimum, u, float32(lo), float32(hi))
		return q, err
	}
	for i := range x {
		var v float32
		if scale[i] != 0 {
			v = (x[i] + minimum[i]) / scale[i]
		}
		if !(v > float32(lo)) { // NaN too
			v = float32(lo)
		}
		q[i] = float32(math.RoundToEven(float64(min(v, float32(hi)))))
		err[i] = (x[i] - (float32(scale[i]*q[i]) - minimum[i])) / u
	}
	return q, err
}

// SubtractLanes sets dst[j] −= u[j]·x for each of u.
func SubtractLanes(dst []Lane, u []float32, x *Lane) {
	dst = dst[:len(u)]
	if n := lanes(); n > 0 && len(u) > 0 {
		subtractLanes(n, dst, u, x)
		return
	}
	for j, v := range u {
		for i := range x {
			dst[j][i] -= float32(v * x[i])
		}
	}
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
