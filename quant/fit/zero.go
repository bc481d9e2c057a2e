package fit

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// One scale and one zero point per block, value = d·(q − z): a minimum that is a whole multiple of the scale. The search for a
// minimum of any value gives ranges; the whole numbers around each one's zero point are then tried, each with its best scale.

func fitZero(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	b := &bs[0]
	var s scratch
	s.load(w, importance)
	gr := s.group(0, g.Block)
	b.D, b.DMin, b.Sc[0], b.M[0] = 0, 0, 1, 1
	top := gr.largest()
	if top == 0 {
		return
	}
	best := float32(math.Inf(1))
	try := func(scale float32, zero int) {
		z := float32(zero)
		for last := float32(math.Inf(1)); ; {
			d := roundScaleOf(g, scale)
			if d == 0 {
				return
			}
			f := lv.measure(&gr, d, d*z)
			if f.Err < best {
				best, b.D, b.DMin = f.Err, d, d*z
			}
			if !(f.Err < last) {
				return
			}
			last = f.Err
			// d = Σ wt·(l−z)·x / Σ wt·(l−z)², l being the levels that the weights were rounded to.
			ll := f.LL - 2*z*f.L + z*z*gr.w
			if !(ll > 0) {
				return
			}
			scale = (f.LX - z*gr.wx) / ll
		}
	}
	near := func(z float32) int {
		return int(min(max(math.RoundToEven(float64(z)), float64(g.Minimums.Min)), float64(g.Minimums.Max)))
	}
	middle := near((lv.lo + lv.hi + 1) / 2)
	try(abs(top), middle) // weights that are all alike
	try(abs(top)/(lv.hi-float32(middle)), middle)
	lo, hi := gr.span()
	lo, hi = min(lo, 0), max(hi, 0) // zero is always on the grid
	for _, share := range [...]float32{1, 0.9, 0.8} {
		d := share * (hi - lo) / (lv.hi - lv.lo)
		try(d, near(-lo*share/d))
	}
	var p minSearch
	p.search(lv, &gr)
	for i := range p.n {
		if p.scale[i] == 0 {
			continue
		}
		z := p.minimum[i] / p.scale[i]
		lo, hi := near(float32(math.Floor(float64(z)))), near(float32(math.Ceil(float64(z))))
		try(p.scale[i], lo)
		if hi != lo {
			try(p.scale[i], hi)
		}
	}
}
