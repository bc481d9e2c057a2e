package search

import "math"

// LevelSums says how a group of weights x fits the values scale·q − minimum, q being whole and the nearest within bounds:
// Err is Σ wt·(x−ŵ)²; L, LL and LX are Σ wt·q, Σ wt·q² and Σ wt·q·x, of which least squares makes a better scale.
type LevelSums struct{ Err, L, LL, LX float32 }

// roundMagic is 1.5·2²³. A float32 of magnitude below 2²² plus roundMagic is rounded to a whole number, which stands in
// the low bits. Beyond, the bits of the sum, read as an int32, still are in order, and so can be clamped.
const (
	roundMagic     = 3 << 22
	roundMagicBits = 0x4b400000
)

// MeasureLevels measures one scale and minimum; len(x) is even, lo and hi bound the levels. A scale of 0 rounds all
// weights to the level nearest to 0.
func MeasureLevels(x, wt []float32, scale, minimum float32, lo, hi int32) LevelSums {
	var inv float32
	if scale != 0 {
		inv = 1 / scale
	}
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	wt = wt[:len(x)]
	// Two at a time keep the sums' additions from waiting for each other. The conversions forbid fused multiply-adds, so
	// that every machine finds the same scales.
	var e0, e1, l0, l1, ll0, ll1, lx0, lx1 float32
	for j := 0; j+1 < len(x); j += 2 {
		v0, v1 := x[j], x[j+1]
		w0, w1 := wt[j], wt[j+1]
		i0 := int32(math.Float32bits(float32((v0+minimum)*inv) + roundMagic))
		i1 := int32(math.Float32bits(float32((v1+minimum)*inv) + roundMagic))
		q0 := math.Float32frombits(uint32(min(max(i0, lo), hi))) - roundMagic
		q1 := math.Float32frombits(uint32(min(max(i1, lo), hi))) - roundMagic
		d0 := v0 - (float32(scale*q0) - minimum)
		d1 := v1 - (float32(scale*q1) - minimum)
		e0 += float32(float32(w0*d0) * d0)
		e1 += float32(float32(w1*d1) * d1)
		w0 = float32(w0 * q0)
		w1 = float32(w1 * q1)
		l0 += w0
		l1 += w1
		ll0 += float32(w0 * q0)
		ll1 += float32(w1 * q1)
		lx0 += float32(w0 * v0)
		lx1 += float32(w1 * v1)
	}
	return LevelSums{e0 + e1, l0 + l1, ll0 + ll1, lx0 + lx1}
}

// Candidates are scales and minima to be measured together: what MeasureLevels finds for each, bit for bit.
type Candidates struct {
	Scale, Minimum [16]float32
	err, l, ll, lx [16]float32
}

// Sums returns what Measure found for candidate i.
func (c *Candidates) Sums(i int) LevelSums { return LevelSums{c.err[i], c.l[i], c.ll[i], c.lx[i]} }

func (c *Candidates) measureGo(n int, x, wt []float32, lo, hi int32) {
	for i := range n {
		s := MeasureLevels(x, wt, c.Scale[i], c.Minimum[i], lo, hi)
		c.err[i], c.l[i], c.ll[i], c.lx[i] = s.Err, s.L, s.LL, s.LX
	}
}

// MaxLane is the most weights that MeasureEach takes: the longest block.
const MaxLane = 256

func (c *Candidates) measureEachGo(n int, x, wt [][16]float32, lo, hi int32) {
	var laneX, laneW [MaxLane]float32
	gx, gw := laneX[:len(x)], laneW[:len(x)]
	for i := range n {
		for j := range x {
			gx[j], gw[j] = x[j][i], wt[j][i]
		}
		s := MeasureLevels(gx, gw, c.Scale[i], c.Minimum[i], lo, hi)
		c.err[i], c.l[i], c.ll[i], c.lx[i] = s.Err, s.L, s.LL, s.LX
	}
}
