// Package search looks for the scales of block types: for 16 groups of weights at a time. A lane of every vector belongs to
// a group of its own, and weights, importances and candidates pass by one after the other. No multiplication is fused with
// an addition and sums go in one order, so that all tiers choose the same scales. Importances wt may be nil, which means 1.
package search

import (
	"math"

	"github.com/llmq/llmq/kernels"
)

// BestScale is the best scale that a search has met for each group, which rounds its weights x to levels q: it minimises
// Σ wt·(x − Scale·q)² for those levels. Score is how much of Σ wt·x² that takes away; LL is Σ wt·q².
type BestScale struct{ Score, Scale, LL kernels.Lane }

// Search tries scales that round x to the whole numbers in lo..hi nearest to x·inverse·level, one for each level, and
// then as many rounds the best scale so far. len(x) is even.
func (b *BestScale) Search(x, wt []kernels.Lane, inverse *kernels.Lane, levels []float32, rounds int, lo, hi int32) {
	checkImportances(x, wt)
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(x) > 0 && len(levels)+rounds > 0 {
		b.search(n, x, wt, inverse, levels, rounds, lo, hi)
		return
	}
	for i := range kernels.Lanes {
		for _, level := range levels {
			b.try(i, x, wt, inverse[i]*level, lo, hi)
		}
		for range rounds {
			b.try(i, x, wt, inverseOf(b.Scale[i]), lo, hi)
		}
	}
}

func (b *BestScale) try(i int, x, wt []kernels.Lane, inverse float32, lo, hi int32) {
	var ll, lx [2]float32
	for j := range x {
		q := roundLevel(x[j][i]*inverse, lo, hi)
		wq := float32(importanceAt(wt, j, i) * q)
		ll[j%2] += float32(wq * q)
		lx[j%2] += float32(wq * x[j][i])
	}
	sumLL, sumLX := ll[0]+ll[1], lx[0]+lx[1]
	scale := sumLX / sumLL
	if score := scale * sumLX; score > b.Score[i] {
		b.Score[i], b.Scale[i], b.LL[i] = score, scale, sumLL
	}
}

// BestMinimum is BestScale for groups with a minimum, whose weights are rounded to Scale·q − Minimum; its score is what is
// taken away of Σ wt·(x−mean)². L is Σ wt·q.
type BestMinimum struct{ Score, Scale, Minimum, L, LL kernels.Lane }

// Range is a scale and a minimum for each group.
type Range struct{ Scale, Minimum kernels.Lane }

// Moments are 1/Σ wt, Σ wt·x and the weighted mean of each group.
type Moments struct{ InverseW, WX, Mean kernels.Lane }

// Search tries ranges and then as many rounds the best so far. len(x) is even.
func (b *BestMinimum) Search(x, wt []kernels.Lane, m *Moments, ranges []Range, rounds int, lo, hi int32) {
	checkImportances(x, wt)
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(x) > 0 && len(ranges)+rounds > 0 {
		b.search(n, x, wt, m, ranges, rounds, lo, hi)
		return
	}
	for i := range kernels.Lanes {
		for k := range ranges {
			b.try(i, x, wt, m, ranges[k].Scale[i], ranges[k].Minimum[i], lo, hi)
		}
		for range rounds {
			b.try(i, x, wt, m, b.Scale[i], b.Minimum[i], lo, hi)
		}
	}
}

const (
	// oneLevel is the relative variance of levels below which all weights that matter have the same.
	oneLevel = 1.0 / (1 << 19)
	// scoreNoise is how much better, relative to LL over the variance, a score must be to be no rounding error of sums:
	// groups that several ranges suit all take the first, so that their scales have a common step.
	scoreNoise = 1.0 / (1 << 21)
)

func (b *BestMinimum) try(i int, x, wt []kernels.Lane, m *Moments, scale, minimum float32, lo, hi int32) {
	inverse := inverseOf(scale)
	var l, ll, lx [2]float32
	for j := range x {
		q := roundLevel(float32(x[j][i]+minimum)*inverse, lo, hi)
		wq := float32(importanceAt(wt, j, i) * q)
		l[j%2] += wq
		ll[j%2] += float32(wq * q)
		lx[j%2] += float32(wq * x[j][i])
	}
	sumL, sumLL, sumLX := l[0]+l[1], ll[0]+ll[1], lx[0]+lx[1]
	mean := sumL * m.InverseW[i] // of the levels
	variance := sumLL - float32(sumL*mean)
	covariance := sumLX - float32(mean*m.WX[i])
	scale = covariance / variance
	score := float32(scale * covariance)
	if variance > sumLL*oneLevel && float32(score-b.Score[i])*variance > float32(b.Score[i]*scoreNoise)*sumLL {
		b.Score[i], b.Scale[i], b.Minimum[i] = score, scale, float32(scale*mean)-m.Mean[i]
		b.L[i], b.LL[i] = sumL, sumLL
	}
}

// BestRange is the best of the ranges that Choose was given, by its error Σ wt·(x − ŵ)².
type BestRange struct {
	Err   kernels.Lane
	Index [kernels.Lanes]int32
}

// Choose measures ranges, indices from first on, and keeps those that are better. len(x) is even.
func (b *BestRange) Choose(first int, x, wt []kernels.Lane, ranges []Range, lo, hi int32) {
	checkImportances(x, wt)
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(x) > 0 && len(ranges) > 0 {
		b.choose(n, int32(first), x, wt, ranges, lo, hi)
		return
	}
	for i := range kernels.Lanes {
		for k := range ranges {
			if e := rangeError(i, x, wt, ranges[k].Scale[i], ranges[k].Minimum[i], lo, hi); e < b.Err[i] {
				b.Err[i], b.Index[i] = e, int32(first+k)
			}
		}
	}
}

// rangeError is Σ wt·(x − ŵ)² of group i.
func rangeError(i int, x, wt []kernels.Lane, scale, minimum float32, lo, hi int32) float32 {
	inverse := inverseOf(scale)
	var e [2]float32
	for j := range x {
		q := roundLevel(float32(x[j][i]+minimum)*inverse, lo, hi)
		d := x[j][i] - (float32(scale*q) - minimum)
		e[j%2] += float32(float32(importanceAt(wt, j, i)*d) * d)
	}
	return e[0] + e[1]
}

// Window says which multiples of Scale and Minimum BestMultiple.Choose tries for each group: Q and M first. M then grows by
// Slope from one to the next, beside what all groups do.
type Window struct{ Scale, Minimum, Q, M, Slope kernels.Lane }

// BestMultiple is the best range, with a scale of Q and a minimum of M times those of a window, by its error
// Err = Σ wt·(x − ŵ)².
type BestMultiple struct{ Err, Q, M kernels.Lane }

// Choose measures as many multiples as there are steps, and keeps those that are better. Q is brought to from..to and M to
// 0..most, both rounded towards 0. After each, a step is added to Q and M. len(x) is even.
func (b *BestMultiple) Choose(x, wt []kernels.Lane, w *Window, steps [][2]float32, lo, hi int32, from, to, most float32) {
	checkImportances(x, wt)
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(x) > 0 && len(steps) > 0 {
		b.choose(n, x, wt, w, steps, lo, hi, from, to, most)
		return
	}
	for i := range kernels.Lanes {
		nextQ, nextM := w.Q[i], w.M[i]
		for _, step := range steps {
			q, m := wholeWithin(nextQ, from, to), wholeWithin(nextM, 0, most)
			nextQ += step[0]
			nextM += w.Slope[i]
			nextM += step[1]
			if e := rangeError(i, x, wt, w.Scale[i]*q, w.Minimum[i]*m, lo, hi); e < b.Err[i] {
				b.Err[i], b.Q[i], b.M[i] = e, q, m
			}
		}
	}
}

// wholeWithin returns the whole part of v within from..to, and from for NaN.
func wholeWithin(v, from, to float32) float32 {
	if !(v > from) {
		v = from
	}
	return float32(math.Trunc(float64(min(v, to))))
}

// SpreadRanges sets scales to factors[k][0]·a and minima to factors[k][1]·b − c.
func SpreadRanges(ranges []Range, a, b, c *kernels.Lane, factors [][2]float32) {
	ranges = ranges[:len(factors)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(factors) > 0 {
		spreadRanges(n, ranges, a, b, c, factors)
		return
	}
	for k, f := range factors {
		for i := range kernels.Lanes {
			ranges[k].Scale[i], ranges[k].Minimum[i] = f[0]*a[i], float32(f[1]*b[i])-c[i]
		}
	}
}

func checkImportances(x, wt []kernels.Lane) {
	if wt != nil && len(wt) < len(x) {
		panic("search: fewer importances than weights")
	}
}

func importanceAt(wt []kernels.Lane, j, i int) float32 {
	if wt == nil {
		return 1
	}
	return wt[j][i]
}

// roundLevel returns the whole number in lo..hi nearest to v.
func roundLevel(v float32, lo, hi int32) float32 {
	bits := int32(math.Float32bits(float32(v) + roundMagic)) // v, a product, is rounded first
	return math.Float32frombits(uint32(min(max(bits, lo+roundMagicBits), hi+roundMagicBits))) - roundMagic
}

func inverseOf(scale float32) float32 {
	if scale == 0 {
		return 0
	}
	return 1 / scale
}

// Span describes 16 groups: their smallest and largest weights, the least magnitude above zero (+Inf without one), and
// Σ wt and Σ wt·x.
type Span struct{ Lo, Hi, Least, W, WX kernels.Lane }

// Spans returns what the groups span. len(x) is even and not 0.
func Spans(x, wt []kernels.Lane) (s Span) {
	wt = wt[:len(x)]
	if n := kernels.CurrentTier().Lanes(); n > 0 {
		s.span(n, x, wt)
		return s
	}
	for i := range kernels.Lanes {
		s.Lo[i], s.Hi[i], s.Least[i] = x[0][i], x[0][i], float32(math.Inf(1))
		var w, wx [2]float32
		for j := range x {
			v := x[j][i]
			if v < s.Lo[i] {
				s.Lo[i] = v
			}
			if v > s.Hi[i] {
				s.Hi[i] = v
			}
			if a := math.Float32frombits(math.Float32bits(v) &^ (1 << 31)); a > 0 && a < s.Least[i] {
				s.Least[i] = a
			}
			w[j%2] += wt[j][i]
			wx[j%2] += float32(wt[j][i] * v)
		}
		s.W[i], s.WX[i] = w[0]+w[1], wx[0]+wx[1]
	}
	return s
}

// NearestLevels sets codes to the whole numbers in lo..hi nearest to (x + minimum)/scale, ties to even; scale is not 0.
func NearestLevels(codes []int8, x []float32, scale, minimum float32, lo, hi int8) {
	codes = codes[:len(x)]
	whole := 0
	if n := kernels.CurrentTier().Lanes(); n > 0 {
		if whole = len(x) &^ 15; whole > 0 {
			nearestLevels(n, codes[:whole], x, scale, minimum, lo, hi)
		}
	}
	for j := whole; j < len(x); j++ {
		v := (x[j] + minimum) / scale
		if !(v > float32(lo)) { // NaN too
			v = float32(lo)
		}
		codes[j] = int8(math.RoundToEven(float64(min(v, float32(hi)))))
	}
}

// Lattice is what rounding scales and minima to multiples of a step costs, with the levels that weights have now: a group
// with its best Scale and Minimum for them, Σ wt·q = L, Σ wt·q² = LL and Σ wt = W has a larger error by
// LL·x² − 2·L·x·y + W·y² if they change by x and y.
type Lattice struct{ Scale, Minimum, L, LL, W, InverseW kernels.Lane }

// Errors sets err[k] to how much larger the groups' errors are with multiples of steps[k]: of Scale in lo..hi, the one next
// below or above, and of Minimum in 0..most, the one that then suits best. Steps are not 0.
func (l *Lattice) Errors(err []kernels.Lane, steps []Range, lo, hi, most float32) {
	err = err[:len(steps)]
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(steps) > 0 {
		l.errors(n, err, steps, lo, hi, most)
		return
	}
	for k := range steps {
		for i := range kernels.Lanes {
			_, _, err[k][i] = l.nearest(i, steps[k].Scale[i], steps[k].Minimum[i], lo, hi, most)
		}
	}
}

// nearest returns group i's multiples, and how much larger its error is with them.
func (l *Lattice) nearest(i int, step, stepMinimum, lo, hi, most float32) (q, m, err float32) {
	inverse, inverseMin := 1/step, 1/stepMinimum
	below := float32(math.Floor(float64(min(max(l.Scale[i]*inverse, lo), hi))))
	try := func(q float32) (m, e float32) {
		x := float32(q*step) - l.Scale[i]
		m = float32(l.Minimum[i]+float32(float32(x*l.L[i])*l.InverseW[i])) * inverseMin
		m = float32(math.RoundToEven(float64(min(max(m, 0), most))))
		y := float32(m*stepMinimum) - l.Minimum[i]
		return m, float32(x*(float32(l.LL[i]*x)-2*float32(l.L[i]*y))) + float32(float32(l.W[i]*y)*y)
	}
	above := min(below+1, hi)
	m, err = try(below)
	if m2, e2 := try(above); e2 < err {
		return above, m2, e2
	}
	return below, m, err
}
