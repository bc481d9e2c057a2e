package calib

import "math"

// HistogramBins is how many bins a histogram has: TensorRT's calibrator takes as many.
const HistogramBins = 2048

// Histogram counts magnitudes. Bin i of Neg and Pos counts the values below and from zero on whose magnitude is in
// [i·w, (i+1)·w), w being Range/HistogramBins. Range is a power of two above the largest magnitude seen, and grows by
// doubling, which joins pairs of bins: so the counts do not depend on the order in which values come.
type Histogram struct {
	Range    float64
	Neg, Pos []int64
	AbsMax   float64 // the largest magnitude itself
}

// NewHistogram returns an empty histogram.
func NewHistogram() *Histogram {
	return &Histogram{Neg: make([]int64, HistogramBins), Pos: make([]int64, HistogramBins)}
}

// minRange keeps bins wide enough to divide by: no activation of interest is as small.
const minRange = 0x1p-100

// reserve grows the range beyond a magnitude.
func (h *Histogram) reserve(absMax float64) {
	h.AbsMax = max(h.AbsMax, absMax)
	if h.Range == 0 {
		// All that was counted so far is zeros, whose bin is the first at any range.
		h.Range = minRange
		if absMax >= minRange {
			_, exp := math.Frexp(absMax) // absMax < 2^exp
			h.Range = math.Ldexp(1, exp)
		}
	}
	for h.Range <= absMax {
		for _, bins := range [][]int64{h.Neg, h.Pos} {
			for i := range HistogramBins / 2 {
				bins[i] = bins[2*i] + bins[2*i+1]
			}
			clear(bins[HistogramBins/2:])
		}
		h.Range *= 2
	}
}

// Width is the width of a bin.
func (h *Histogram) Width() float64 { return h.Range / HistogramBins }

// Count is the number of values.
func (h *Histogram) Count() int64 {
	var n int64
	for i := range h.Neg {
		n += h.Neg[i] + h.Pos[i]
	}
	return n
}

// Abs returns the counts of magnitudes.
func (h *Histogram) Abs() []int64 {
	abs := make([]int64, len(h.Neg))
	for i := range abs {
		abs[i] = h.Neg[i] + h.Pos[i]
	}
	return abs
}

// Shrink returns the counts of magnitudes in bins bins, a divisor of HistogramBins, over the same range.
func (h *Histogram) Shrink(bins int) []int64 {
	out := make([]int64, bins)
	for i, n := range h.Abs() {
		out[i*bins/HistogramBins] += n
	}
	return out
}
