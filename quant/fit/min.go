package fit

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// One scale and one minimum per block: Q4_1, Q5_1. The same search finds each group's own best in super-blocks.

func fitMin(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	b := &bs[0]
	var s scratch
	s.load(w, importance)
	group := s.group(0, g.Block)
	gr := &group
	b.D, b.DMin, b.Sc[0], b.M[0] = 0, 0, 1, 1
	if d, dmin, ok := exactMin(lv, gr); ok {
		b.D, b.DMin = d, dmin
		return
	}
	best := float32(math.Inf(1))
	try := func(d, dmin float32) fit {
		f := lv.measure(gr, d, dmin)
		if f.Err < best {
			best, b.D, b.DMin = f.Err, d, dmin
		}
		return f
	}
	var p minSearch
	p.search(lv, gr)
	for i := range p.n {
		d, dmin := roundScale(p.scale[i]), roundScale(p.minimum[i])
		for last := float32(math.Inf(1)); ; {
			f := try(d, dmin)
			if !(f.Err < last) {
				break
			}
			last = f.Err
			scale, minimum, _ := gr.solve(f, d, dmin)
			d, dmin = roundScale(scale), roundScale(minimum)
		}
	}
	// Least squares knows nothing of float16's steps, which are wide where it is subnormal or the minimum far from zero.
	d, dmin := b.D, b.DMin
	step, stepMin := stepF16(d), stepF16(dmin)
	for i := float32(-1); i <= 1; i++ {
		for j := float32(-1); j <= 1; j++ {
			try(roundScale(d+i*step), roundScale(dmin+j*stepMin))
		}
	}
}

// exactMin returns the scale and minimum with which the weights are on the grid already, as those of a quantized
// checkpoint are.
func exactMin(lv *levels, gr *group) (d, dmin float32, ok bool) {
	lo, hi := gr.span()
	slack := (hi - lo) / 4096              // half of float16's relative precision, more than float32 sums lose
	for n := float32(1); n <= lv.hi; n++ { // levels between the smallest weight and the largest
		d := roundScale((hi - lo) / n)
		if abs(d*n-(hi-lo)) > slack {
			continue
		}
		for q := float32(0); q+n <= lv.hi; q++ { // the smallest weight's
			dmin := roundScale(float32(d*q) - lo)
			if float32(d*q)-dmin == lo && float32(d*(q+n))-dmin == hi && lv.measure(gr, d, dmin).Err == 0 {
				return d, dmin, true
			}
		}
	}
	return 0, 0, false
}

// span returns the smallest weight and the largest.
func (gr *group) span() (lo, hi float32) {
	lo, hi = gr.x[0], gr.x[0]
	for _, v := range gr.x {
		lo, hi = min(lo, v), max(hi, v)
	}
	return lo, hi
}

// solve returns the scale and minimum that suit the levels of f best, f having been measured with the given ones, and
// the error that the same levels have then, or sumNoise.
func (gr *group) solve(f fit, scale, minimum float32) (newScale, newMinimum, err float32) {
	w, l, ll := float64(gr.w), float64(f.L), float64(f.LL)
	// The residuals' sums Σ wt·(x−ŵ) and Σ wt·l·(x−ŵ): solving for the change, rather than for the values themselves,
	// loses few digits of the error.
	r := float64(gr.wx) - float64(scale)*l + float64(minimum)*w
	lr := float64(f.LX) - float64(scale)*ll + float64(minimum)*l
	det := w*ll - l*l
	if !(det > oneLevel*w*ll) {
		return 0, -gr.wx / gr.w, max(f.Err-float32(r*r/w), sumNoise*gr.wxx)
	}
	ds, dm := (w*lr-l*r)/det, (l*lr-ll*r)/det
	return scale + float32(ds), minimum + float32(dm), max(f.Err-float32(lr*ds-r*dm), sumNoise*gr.wxx)
}

// oneLevel is the relative determinant below which all weights that matter have the same level.
const oneLevel = 1e-9

// minSearch keeps the best pairs of scale and minimum that it has met, the best first, and their errors.
type minSearch struct {
	n                   int
	scale, minimum, err [3]float32
}

func (p *minSearch) add(scale, minimum, err float32) {
	i := p.n
	for i > 0 && err < p.err[i-1] {
		i--
	}
	if i == len(p.scale) {
		return
	}
	p.n = min(p.n+1, len(p.scale))
	copy(p.scale[i+1:p.n], p.scale[i:])
	copy(p.minimum[i+1:p.n], p.minimum[i:])
	copy(p.err[i+1:p.n], p.err[i:])
	p.scale[i], p.minimum[i], p.err[i] = scale, minimum, err
}

// search tries ranges that leave a part of a level free, or clip up to a level, at either end of the group's range, and
// ranges with one or both ends nearer to the weighted mean, in case unimportant outliers had better be clipped.
func (p *minSearch) search(lv *levels, gr *group) {
	lo, hi := gr.span()
	if hi <= lo {
		p.add(0, -lo, 0)
		return
	}
	step := (hi - lo) / lv.hi
	var t tries
	for _, a := range [...]float32{0, -0.6, 0.6, 1.2} {
		for _, b := range [...]float32{0, -0.6, 0.6, 1.2} {
			t.span(lv, lo+a*step, hi-b*step)
		}
	}
	if gr.uneven {
		t.clips(lv, gr, lo, hi)
	}
	t.measure(lv, gr)
	for i := range t.n {
		p.add(gr.solve(t.fit[i], t.scale[i], t.minimum[i]))
	}
}

// clips adds ranges with one or both ends nearer to the weighted mean.
func (t *tries) clips(lv *levels, gr *group, lo, hi float32) {
	mean := gr.wx / gr.w
	var variance float32
	for j, v := range gr.x {
		variance += gr.wt[j] * (v - mean) * (v - mean)
	}
	deviation := float32(math.Sqrt(float64(variance / gr.w)))
	for _, k := range [...]float32{1, 1.5, 2, 2.5} {
		t.span(lv, mean-k*deviation, mean+k*deviation)
		t.span(lv, lo, mean+k*deviation)
		t.span(lv, mean-k*deviation, hi)
	}
}

// span adds the scale and minimum with which the levels reach from lo to hi.
func (t *tries) span(lv *levels, lo, hi float32) {
	if hi > lo {
		t.add((hi-lo)/lv.hi, -lo)
	}
}
