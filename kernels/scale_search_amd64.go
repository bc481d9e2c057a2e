//go:build !purego

package kernels

func (b *BestScale) search(lanes int, x, wt []Lane, inverse *Lane, levels []float32, rounds int, lo, hi int32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	var level *float32
	if len(levels) > 0 {
		level = &levels[0]
	}
	if wt == nil {
		if lanes == Lanes {
			searchScaleEqualAVX512(&b.Score[0], &x[0][0], len(x), &inverse[0], level, len(levels), rounds, lo, hi)
			return
		}
		for i := 0; i < Lanes; i += lanes {
			searchScaleEqualAVX2(&b.Score[i], &x[0][i], len(x), &inverse[i], level, len(levels), rounds, lo, hi)
		}
		return
	}
	if lanes == Lanes {
		searchScaleAVX512(&b.Score[0], &x[0][0], &wt[0][0], len(x), &inverse[0], level, len(levels), rounds, lo, hi)
		return
	}
	for i := 0; i < Lanes; i += lanes {
		searchScaleAVX2(&b.Score[i], &x[0][i], &wt[0][i], len(x), &inverse[i], level, len(levels), rounds, lo, hi)
	}
}

func (b *BestMinimum) search(lanes int, x, wt []Lane, m *Moments, ranges []Range, rounds int, lo, hi int32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	if wt == nil {
		if lanes == Lanes {
			searchMinimumEqualAVX512(&b.Score[0], &x[0][0], len(x), &m.InverseW[0], scaleOf(ranges, 0), len(ranges), rounds, lo, hi)
			return
		}
		for i := 0; i < Lanes; i += lanes {
			searchMinimumEqualAVX2(&b.Score[i], &x[0][i], len(x), &m.InverseW[i], scaleOf(ranges, i), len(ranges), rounds, lo, hi)
		}
		return
	}
	if lanes == Lanes {
		searchMinimumAVX512(&b.Score[0], &x[0][0], &wt[0][0], len(x), &m.InverseW[0], scaleOf(ranges, 0), len(ranges), rounds,
			lo, hi)
		return
	}
	for i := 0; i < Lanes; i += lanes {
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

func (b *BestRange) choose(lanes int, first int32, x, wt []Lane, ranges []Range, lo, hi int32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	if wt == nil {
		if lanes == Lanes {
			chooseRangeEqualAVX512(&b.Err[0], &x[0][0], len(x), &ranges[0].Scale[0], len(ranges), first, lo, hi)
			return
		}
		for i := 0; i < Lanes; i += lanes {
			chooseRangeEqualAVX2(&b.Err[i], &x[0][i], len(x), &ranges[0].Scale[i], len(ranges), first, lo, hi)
		}
		return
	}
	if lanes == Lanes {
		chooseRangeAVX512(&b.Err[0], &x[0][0], &wt[0][0], len(x), &ranges[0].Scale[0], len(ranges), first, lo, hi)
		return
	}
	for i := 0; i < Lanes; i += lanes {
		chooseRangeAVX2(&b.Err[i], &x[0][i], &wt[0][i], len(x), &ranges[0].Scale[i], len(ranges), first, lo, hi)
	}
}

func (b *BestMultiple) choose(lanes int, x, wt []Lane, w *Window, steps [][2]float32, lo, hi int32, from, to, most float32) {
	lo, hi = lo+roundMagicBits, hi+roundMagicBits
	for i := 0; i < Lanes; i += lanes {
		switch {
		case lanes == Lanes && wt == nil:
			multiplesEqualAVX512(&b.Err[0], &x[0][0], len(x), &w.Scale[0], &steps[0][0], len(steps), lo, hi, from, to, most)
		case lanes == Lanes:
			multiplesAVX512(&b.Err[0], &x[0][0], &wt[0][0], len(x), &w.Scale[0], &steps[0][0], len(steps), lo, hi, from, to, most)
		case wt == nil:
			multiplesEqualAVX2(&b.Err[i], &x[0][i], len(x), &w.Scale[i], &steps[0][0], len(steps), lo, hi, from, to, most)
		default:
			multiplesAVX2(&b.Err[i], &x[0][i], &wt[0][i], len(x), &w.Scale[i], &steps[0][0], len(steps), lo, hi, from, to, most)
		}
	}
}

func spreadRanges(lanes int, ranges []Range, a, b, c *Lane, factors [][2]float32) {
	if lanes == Lanes {
		spreadRangesAVX512(&ranges[0].Scale[0], &a[0], &b[0], &c[0], &factors[0][0], len(factors))
		return
	}
	for i := 0; i < Lanes; i += lanes {
		spreadRangesAVX2(&ranges[0].Scale[i], &a[i], &b[i], &c[i], &factors[0][0], len(factors))
	}
}

func (s *Span) span(lanes int, x, wt []Lane) {
	if lanes == Lanes {
		spansAVX512(&s.Lo[0], &x[0][0], &wt[0][0], len(x))
		return
	}
	for i := 0; i < Lanes; i += lanes {
		spansAVX2(&s.Lo[i], &x[0][i], &wt[0][i], len(x))
	}
}

func transposeLanes(lanes int, dst []Lane, src []float32, pitch int) {
	if lanes == Lanes {
		transposeAVX512(word(&dst[0][0]), 4*Lanes, word(&src[0]), 4*pitch, len(dst)/lanes)
		return
	}
	for i := 0; i < Lanes; i += lanes {
		transposeAVX2(word(&dst[0][i]), 4*Lanes, word(&src[i*pitch]), 4*pitch, len(dst)/lanes)
	}
}

func nearestLevels(lanes int, codes []int8, x []float32, scale, minimum float32, lo, hi int8) {
	if lanes == Lanes {
		nearestLevelsAVX512(&codes[0], &x[0], len(codes), scale, minimum, float32(lo), float32(hi))
		return
	}
	nearestLevelsAVX2(&codes[0], &x[0], len(codes), scale, minimum, float32(lo), float32(hi))
}

func (l *Lattice) errors(lanes int, err []Lane, steps []Range, lo, hi, most float32) {
	if lanes == Lanes {
		latticeErrorsAVX512(&err[0][0], &l.Scale[0], &steps[0].Scale[0], len(steps), lo, hi, most)
		return
	}
	for i := 0; i < Lanes; i += lanes {
		latticeErrorsAVX2(&err[0][i], &l.Scale[i], &steps[0].Scale[i], len(steps), lo, hi, most)
	}
}

func roundQ4_0(lanes int, dst []byte, x, scale []float32) {
	if lanes == Lanes {
		roundQ4_0AVX512(&dst[0], &x[0], &scale[0], len(scale))
		return
	}
	roundQ4_0AVX2(&dst[0], &x[0], &scale[0], len(scale))
}

func roundQ8_0(lanes int, dst []byte, x, scale []float32) {
	if lanes == Lanes {
		roundQ8_0AVX512(&dst[0], &x[0], &scale[0], len(scale))
		return
	}
	roundQ8_0AVX2(&dst[0], &x[0], &scale[0], len(scale))
}
