//go:build !purego

package search

import "github.com/llmq/llmq/kernels"

func (b *BestScale) search(lanes int, x, wt []kernels.Lane, inverse *kernels.Lane, levels []float32, rounds int, lo, hi int32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	var level *float32
	if len(levels) > 0 {
		level = &levels[0]
	}
	if wt == nil {
		if lanes == kernels.Lanes {
			searchScaleEqualAVX512(&b.Score[0], &x[0][0], len(x), &inverse[0], level, len(levels), rounds, lo, hi)
			return
		}
		for i := 0; i < kernels.Lanes; i += lanes {
			searchScaleEqualAVX2(&b.Score[i], &x[0][i], len(x), &inverse[i], level, len(levels), rounds, lo, hi)
		}
		return
	}
	if lanes == kernels.Lanes {
		searchScaleAVX512(&b.Score[0], &x[0][0], &wt[0][0], len(x), &inverse[0], level, len(levels), rounds, lo, hi)
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		searchScaleAVX2(&b.Score[i], &x[0][i], &wt[0][i], len(x), &inverse[i], level, len(levels), rounds, lo, hi)
	}
}

func (b *BestMinimum) search(lanes int, x, wt []kernels.Lane, m *Moments, ranges []Range, rounds int, lo, hi int32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	if wt == nil {
		if lanes == kernels.Lanes {
			searchMinimumEqualAVX512(&b.Score[0], &x[0][0], len(x), &m.InverseW[0], scaleOf(ranges, 0), len(ranges), rounds, lo, hi)
			return
		}
		for i := 0; i < kernels.Lanes; i += lanes {
			searchMinimumEqualAVX2(&b.Score[i], &x[0][i], len(x), &m.InverseW[i], scaleOf(ranges, i), len(ranges), rounds, lo, hi)
		}
		return
	}
	if lanes == kernels.Lanes {
		searchMinimumAVX512(&b.Score[0], &x[0][0], &wt[0][0], len(x), &m.InverseW[0], scaleOf(ranges, 0), len(ranges), rounds,
			lo, hi)
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		searchMinimumAVX2(&b.Score[i], &x[0][i], &wt[0][i], len(x), &m.InverseW[i], scaleOf(ranges, i), len(ranges), rounds,
			lo, hi)
	}
}

func scaleOf(ranges []Range, lane int) *float32 {
	if len(ranges) == 0 {
		return nil
	}
	return &ranges[0].Scale[lane]
}

func (b *BestRange) choose(lanes int, first int32, x, wt []kernels.Lane, ranges []Range, lo, hi int32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	if wt == nil {
		if lanes == kernels.Lanes {
			chooseRangeEqualAVX512(&b.Err[0], &x[0][0], len(x), &ranges[0].Scale[0], len(ranges), first, lo, hi)
			return
		}
		for i := 0; i < kernels.Lanes; i += lanes {
			chooseRangeEqualAVX2(&b.Err[i], &x[0][i], len(x), &ranges[0].Scale[i], len(ranges), first, lo, hi)
		}
		return
	}
	if lanes == kernels.Lanes {
		chooseRangeAVX512(&b.Err[0], &x[0][0], &wt[0][0], len(x), &ranges[0].Scale[0], len(ranges), first, lo, hi)
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		chooseRangeAVX2(&b.Err[i], &x[0][i], &wt[0][i], len(x), &ranges[0].Scale[i], len(ranges), first, lo, hi)
	}
}

func (b *BestMultiple) choose(lanes int, x, wt []kernels.Lane, w *Window, steps [][2]float32, lo, hi int32, from, to, most float32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	for i := 0; i < kernels.Lanes; i += lanes {
		switch {
		case lanes == kernels.Lanes && wt == nil:
			multiplesEqualAVX512(&b.Err[0], &x[0][0], len(x), &w.Scale[0], &steps[0][0], len(steps), lo, hi, from, to, most)
		case lanes == kernels.Lanes:
			multiplesAVX512(&b.Err[0], &x[0][0], &wt[0][0], len(x), &w.Scale[0], &steps[0][0], len(steps), lo, hi, from, to, most)
		case wt == nil:
			multiplesEqualAVX2(&b.Err[i], &x[0][i], len(x), &w.Scale[i], &steps[0][0], len(steps), lo, hi, from, to, most)
		default:
			multiplesAVX2(&b.Err[i], &x[0][i], &wt[0][i], len(x), &w.Scale[i], &steps[0][0], len(steps), lo, hi, from, to, most)
		}
	}
}

func spreadRanges(lanes int, ranges []Range, a, b, c *kernels.Lane, factors [][2]float32) {
	if lanes == kernels.Lanes {
		spreadRangesAVX512(&ranges[0].Scale[0], &a[0], &b[0], &c[0], &factors[0][0], len(factors))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		spreadRangesAVX2(&ranges[0].Scale[i], &a[i], &b[i], &c[i], &factors[0][0], len(factors))
	}
}

func (s *Span) span(lanes int, x, wt []kernels.Lane) {
	if lanes == kernels.Lanes {
		spansAVX512(&s.Lo[0], &x[0][0], &wt[0][0], len(x))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		spansAVX2(&s.Lo[i], &x[0][i], &wt[0][i], len(x))
	}
}

func nearestLevels(lanes int, codes []int8, x []float32, scale, minimum float32, lo, hi int8) {
	if lanes == kernels.Lanes {
		nearestLevelsAVX512(&codes[0], &x[0], len(codes), scale, minimum, float32(lo), float32(hi))
		return
	}
	nearestLevelsAVX2(&codes[0], &x[0], len(codes), scale, minimum, float32(lo), float32(hi))
}

func (l *Lattice) errors(lanes int, err []kernels.Lane, steps []Range, lo, hi, most float32) {
	if lanes == kernels.Lanes {
		latticeErrorsAVX512(&err[0][0], &l.Scale[0], &steps[0].Scale[0], len(steps), lo, hi, most)
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		latticeErrorsAVX2(&err[0][i], &l.Scale[i], &steps[0].Scale[i], len(steps), lo, hi, most)
	}
}

func largest(lanes int, most *kernels.Lane, x []kernels.Lane) {
	if lanes == kernels.Lanes {
		largestAVX512(&most[0], &x[0][0], len(x))
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		largestAVX2(&most[i], &x[0][i], len(x))
	}
}

func normalize(lanes int, x []kernels.Lane, most, factor *kernels.Lane) {
	if lanes == kernels.Lanes {
		normalizeAVX512(&x[0][0], len(x), &most[0], &factor[0])
		return
	}
	for i := 0; i < kernels.Lanes; i += lanes {
		normalizeAVX2(&x[0][i], len(x), &most[i], &factor[i])
	}
}

func (s *Moves) move(c, lo, hi, most float64) uint16 { return movesAVX2(&s.P[0], c, lo, hi, most) }

// Measure measures the first n candidates on a group of weights, an even number: see MeasureLevels.
func (c *Candidates) Measure(n int, x, wt []float32, lo, hi int32) {
	wt = wt[:len(x)]
	l := kernels.CurrentTier().Lanes()
	if l == 0 || len(x) == 0 {
		c.measureGo(n, x, wt, lo, hi)
		return
	}
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	if l == 16 {
		measureAVX512(&c.err[0], &c.Scale[0], &x[0], &wt[0], len(x), lo, hi)
		return
	}
	for i := 0; i < n; i += l {
		measureAVX2(&c.err[i], &c.Scale[i], &x[0], &wt[0], len(x), lo, hi)
	}
}

// MeasureEach measures each of the first n candidates on a group of its own, lane i of x and wt, whose length is even
// and at most MaxLane.
func (c *Candidates) MeasureEach(n int, x, wt [][16]float32, lo, hi int32) {
	wt = wt[:len(x)]
	l := kernels.CurrentTier().Lanes()
	if l == 0 || len(x) == 0 {
		c.measureEachGo(n, x, wt, lo, hi)
		return
	}
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	if l == 16 {
		measureEachAVX512(&c.err[0], &c.Scale[0], &x[0][0], &wt[0][0], len(x), lo, hi)
		return
	}
	for i := 0; i < n; i += l {
		measureEachAVX2(&c.err[i], &c.Scale[i], &x[0][i], &wt[0][i], len(x), lo, hi)
	}
}
