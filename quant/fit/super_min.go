package fit

import (
	"math"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
)

// Super-blocks of groups with a scale and a minimum each: Q2_K, Q4_K, Q5_K.

// superMin is the search's state for the super-blocks that share the lanes.
type superMin struct {
	grid   *quant.Affine
	lv     *levels
	s      lanes
	n      int // groups of a super-block
	blocks int
	effort effort
	// Each group's own best scale and minimum, and with the weights negated, which amounts to levels that count down from a
	// maximum.
	own, mirrored search.Lattice

	d, dmin kernels.Lane // the same for all groups of a super-block
	// What is chosen for each group: multiples of d and dmin, and their error.
	sc, m kernels.Lane
	fits  [kernels.Lanes]fit

	ranges [maxSuperSteps]search.Range // work space
	errs   [maxSuperSteps]kernels.Lane
}

var superMins = sync.Pool{New: func() any { return new(superMin) }}

// effort is how many candidates are tried.
type effort int

const (
	quick  effort = iota // for GPTQ, which makes up for what it misses
	medium               // what weights without importances are worth
	fine                 // what importances are worth
)

// superSteps are the values of d that are tried, relative to the one with which the largest scale just fits, and of dmin,
// relative to the one with which the largest minimum does; coarseSuperSteps those of searches that are not fine.
var (
	superSteps = pairs([]float32{0.5, 0.7, 0.9, 0.92, 0.94, 0.96, 0.98, 1, 1.02, 1.04, 1.06, 1.08, 1.1},
		[]float32{0.94, 0.97, 1, 1.03, 1.06})
	coarseSuperSteps = pairs([]float32{0.5, 0.7, 0.95, 1, 1.05}, []float32{0.95, 1, 1.05})
)

// maxSuperSteps is the larger number of them.
const maxSuperSteps = 65

// pairs returns all pairs of an element of a and one of b.
func pairs(a, b []float32) (p [][2]float32) {
	for _, x := range a {
		for _, y := range b {
			p = append(p, [2]float32{x, y})
		}
	}
	return p
}

const (
	// superMinRounds are the rounds of choose and solve of a fine search; more brought nothing. Without importances, one
	// is as good within 0.5%.
	superMinRounds = 2
	minRounds      = 2 // scaleRounds of groups with a minimum
)

// fitSuperMins fits as many super-blocks as have room in the lanes.
func fitSuperMins(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	e := medium
	if importance != nil {
		e = fine
	}
	fitSuperMin(g, lv, bs, w, importance, e)
}

// fitSuperMinsCoarse is the grids' FitCoarse.
func fitSuperMinsCoarse(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	fitSuperMin(g, lv, bs, w, importance, quick)
}

func fitSuperMin(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32, e effort) {
	p := superMins.Get().(*superMin)
	defer superMins.Put(p)
	p.grid, p.lv, p.n, p.blocks, p.effort = g, lv, g.Groups(), len(bs), e
	p.d, p.dmin, p.sc, p.m = kernels.Lane{}, kernels.Lane{}, kernels.Lane{}, kernels.Lane{}
	p.s.load(w, importance, g.Group, g.Block)
	p.s.revive()
	p.free()
	p.start()
	switch e {
	case quick:
		p.sweep(quickWindow)
		p.solve()
	case medium:
		p.sweep(superMinWindow)
		p.choose()
		p.solve()
	case fine:
		p.sweep(superMinWindow)
		for range superMinRounds {
			p.choose()
			p.solve()
		}
	}
	for i := range bs {
		b := &bs[i]
		b.D, b.DMin = p.d[i*p.n], p.dmin[i*p.n]
		for k := range p.n {
			b.Sc[k], b.M[k] = int8(p.sc[i*p.n+k]), int8(p.m[i*p.n+k])
		}
	}
}

// free finds what suits each group, whatever the others need.
func (p *superMin) free() {
	s := &p.s
	lo, hi := int32(p.lv.lo), int32(p.lv.hi)
	var m search.Moments
	for i := range kernels.Lanes {
		m.InverseW[i] = 1 / s.W[i]
		m.WX[i], m.Mean[i] = s.WX[i], s.WX[i]*m.InverseW[i]
	}
	var best search.BestMinimum
	var step kernels.Lane
	for i := range step {
		step[i] = (s.Hi[i] - s.Lo[i]) * p.lv.inverseHi
		best.Minimum[i] = -m.Mean[i]
	}
	ranges := p.ranges[:len(p.lv.ends)]
	search.SpreadRanges(ranges, &step, &step, &s.Lo, p.lv.ends[:])
	rounds := [...]int{quick: minRounds, medium: coarseRounds, fine: 0}[p.effort]
	best.Search(s.x(), s.weights(), &m, ranges, rounds, lo, hi)
	if p.effort == fine {
		var clips [12]search.Range
		s.clips(&m, &clips, p.lv)
		best.Search(s.x(), s.wt(), &m, clips[:], minRounds, lo, hi)
	}
	p.own = search.Lattice{Scale: best.Scale, Minimum: best.Minimum, L: best.L, LL: best.LL, W: s.W, InverseW: m.InverseW}
	p.mirrored = p.own
	top := p.lv.hi
	below, above := false, false
	for i := range kernels.Lanes {
		p.mirrored.Minimum[i] = p.own.Scale[i]*top - p.own.Minimum[i]
		p.mirrored.L[i] = s.W[i]*top - p.own.L[i]
		p.mirrored.LL[i] = s.W[i]*top*top - 2*top*p.own.L[i] + p.own.LL[i]
		below = below || p.own.Minimum[i] < 0
		above = above || p.mirrored.Minimum[i] < 0
	}
	if below {
		p.fromZero(&p.own, s.Hi, 1)
	}
	if above {
		p.fromZero(&p.mirrored, s.Lo, -1)
	}
}

// fromZero finds the scale, of the given sign, that suits groups with a minimum below 0 best if it is 0.
func (p *superMin) fromZero(l *search.Lattice, top kernels.Lane, sign float32) {
	inverse := invert(&top)
	var best search.BestScale
	hi := p.lv.hi
	best.Search(p.s.x(), p.s.weights(), &inverse, []float32{hi, hi - 0.6, hi + 0.6, hi + 1.2}, scaleRounds, int32(p.lv.lo),
		int32(hi))
	for i, m := range l.Minimum {
		if !(m < 0) {
			continue
		}
		l.Scale[i], l.Minimum[i], l.LL[i] = sign*best.Scale[i], 0, best.LL[i]
	}
}

// start chooses d and dmin by what rounding each group's own scale and minimum costs, with either sign.
func (p *superMin) start() {
	tried := coarseSuperSteps
	if p.effort == fine {
		tried = superSteps
	}
	steps, errs := p.ranges[:len(tried)], p.errs[:len(tried)]
	least := [kernels.Lanes]float32{}
	for i := range p.blocks {
		least[i] = float32(math.Inf(1))
	}
	for _, l := range [...]*search.Lattice{&p.own, &p.mirrored} {
		var d, dmin kernels.Lane // for the largest of each super-block to fit
		for b := 0; b < kernels.Lanes; b += p.n {
			var top, topMin float32
			for i := b; i < b+p.n; i++ {
				top, topMin = max(top, l.Scale[i]), max(topMin, l.Minimum[i])
			}
			top, topMin = max(top/float32(p.grid.Scales.Max), quantumF16), max(topMin/float32(p.grid.Minimums.Max), quantumF16)
			for i := b; i < b+p.n; i++ {
				d[i], dmin[i] = top, topMin
			}
		}
		search.SpreadRanges(steps, &d, &dmin, &kernels.Lane{}, tried)
		l.Errors(errs, steps, 0, float32(p.grid.Scales.Max), float32(p.grid.Minimums.Max))
		p.keepLeast(&least, errs, steps, l == &p.mirrored)
	}
	for b := range p.blocks {
		zero := true
		for i := b * p.n; i < (b+1)*p.n; i++ {
			zero = zero && p.s.Lo[i] == 0 && p.s.Hi[i] == 0
		}
		if zero {
			p.set(b, 0, 0)
		}
	}
	for i := range p.fits {
		p.fits[i].Err = float32(math.Inf(1))
	}
}

// keepLeast sets each super-block's d and dmin to those of the steps whose errors add up to less than least so far.
func (p *superMin) keepLeast(least *[kernels.Lanes]float32, errs []kernels.Lane, steps []search.Range, mirrored bool) {
	for b := range p.blocks {
		i := b * p.n
		for k := range errs {
			sum := sumOf(errs[k][i : i+p.n])
			if !(sum < least[b]) {
				continue
			}
			least[b] = sum
			d, dmin := max(roundScale(steps[k].Scale[i]), quantumF16), max(roundScale(steps[k].Minimum[i]), quantumF16)
			if mirrored {
				d, dmin = -d, -dmin
			}
			p.set(b, d, dmin)
		}
	}
}

// sumOf adds up values, a multiple of four. Four sums at a time are no longer than one.
func sumOf(v []float32) float32 {
	var s0, s1, s2, s3 float32
	for ; len(v) >= 4; v = v[4:] {
		s0 += v[0]
		s1 += v[1]
		s2 += v[2]
		s3 += v[3]
	}
	return (s0 + s1) + (s2 + s3)
}

// set sets super-block b's d and dmin.
func (p *superMin) set(b int, d, dmin float32) {
	for i := b * p.n; i < (b+1)*p.n; i++ {
		p.d[i], p.dmin[i] = d, dmin
	}
}

// How far sweep looks to either side.
const (
	superMinWindow = 6
	quickWindow    = 3
)

// windowSteps goes from one scale to the next.
var windowSteps = func() (steps [2 * superMinWindow][2]float32) {
	for k := range steps {
		steps[k][0] = 1
	}
	return steps
}()

// sweep tries for each group the scales around its own best, with the minima that suit them if the levels stay.
func (p *superMin) sweep(window int) {
	w := search.Window{Scale: p.d, Minimum: p.dmin}
	scaleMax := float32(p.grid.Scales.Max)
	for i := range p.blocks * p.n {
		l, d, dmin := &p.own, p.d[i], p.dmin[i]
		if d < 0 {
			l, d, dmin = &p.mirrored, -d, -dmin
		}
		if d == 0 {
			w.Q[i] = -2 * superMinWindow // all multiples are 0
			continue
		}
		q := clampWhole(l.Scale[i]/d, scaleMax) + float32(1-window)
		slope := l.L[i] * l.InverseW[i]
		// Rounded to the nearest multiple of dmin, from scale to scale.
		w.Q[i], w.M[i] = q, (l.Minimum[i]+float32(q*d-l.Scale[i])*slope)/dmin+0.5
		w.Slope[i] = d * slope / dmin
	}
	p.tryWindow(&w, windowSteps[:2*window])
}

// tryWindow keeps the multiples of w that are better than what there is.
func (p *superMin) tryWindow(w *search.Window, steps [][2]float32) {
	best := search.BestMultiple{Q: p.sc, M: p.m}
	for i := range best.Err {
		best.Err[i] = p.fits[i].Err
	}
	best.Choose(p.s.x(), p.s.weights(), w, steps, int32(p.lv.lo), int32(p.lv.hi), 0, float32(p.grid.Scales.Max),
		float32(p.grid.Minimums.Max))
	p.sc, p.m = best.Q, best.M
	for i, e := range best.Err {
		p.fits[i].Err = e
	}
}

// clampWhole returns the whole part of v within 0..most.
func clampWhole(v, most float32) float32 {
	switch {
	case !(v > 0):
		return 0
	case v >= most:
		return most
	}
	return float32(int32(v))
}

// neighbourSteps lead from the scale and the minimum one below a group's to all the others next to them.
var neighbourSteps = [...][2]float32{{0, 1}, {0, 1}, {1, -2}, {0, 2}, {1, -2}, {0, 1}, {0, 1}, {}}

// choose tries for each group the scales and minima next to its present ones.
func (p *superMin) choose() {
	w := search.Window{Scale: p.d, Minimum: p.dmin}
	for i := range w.Q {
		w.Q[i], w.M[i] = p.sc[i]-1, p.m[i]-1
	}
	p.tryWindow(&w, neighbourSteps[:])
}

// solve sets each super-block's d and dmin to the least-squares solution for the codes if that is better.
func (p *superMin) solve() {
	d, dmin := p.d, p.dmin
	p.measure(&p.fits, &d, &dmin)
	for b := range p.blocks {
		x, y := p.solution(b)
		for i := b * p.n; i < (b+1)*p.n; i++ {
			d[i], dmin[i] = x, y
		}
	}
	var fits [kernels.Lanes]fit
	p.measure(&fits, &d, &dmin)
	for b := range p.blocks {
		var now, then float32
		for i := b * p.n; i < (b+1)*p.n; i++ {
			now += p.fits[i].Err
			then += fits[i].Err
		}
		if then < now {
			p.set(b, d[b*p.n], dmin[b*p.n])
			copy(p.fits[b*p.n:(b+1)*p.n], fits[b*p.n:])
		}
	}
}

// measure measures the groups with d and dmin.
func (p *superMin) measure(fits *[kernels.Lanes]fit, d, dmin *kernels.Lane) {
	var c search.Candidates
	for i := range d {
		c.Scale[i], c.Minimum[i] = d[i]*p.sc[i], dmin[i]*p.m[i]
	}
	c.MeasureEach(kernels.Lanes, p.s.x(), p.s.wt(), int32(p.lv.lo), int32(p.lv.hi))
	for i := range fits {
		fits[i] = fit(c.Sums(i))
	}
}

// solution returns the least-squares solution for the codes of super-block b, or what there is.
func (p *superMin) solution(b int) (d, dmin float32) {
	var a11, a12, a22, b1, b2 float64
	for i := b * p.n; i < (b+1)*p.n; i++ {
		f := &p.fits[i]
		q, m := float64(p.sc[i]), -float64(p.m[i])
		a11 += q * q * float64(f.LL)
		a12 += q * m * float64(f.L)
		a22 += m * m * float64(p.s.W[i])
		b1 += q * float64(f.LX)
		b2 += m * float64(p.s.WX[i])
	}
	oldD, oldMin := p.d[b*p.n], p.dmin[b*p.n]
	x := float64(oldD)
	if det := a11*a22 - a12*a12; det > oneLevel*a11*a22 {
		x = (b1*a22 - b2*a12) / det
	} else if a11 > 0 {
		x = (b1 - float64(oldMin)*a12) / a11
	}
	// dmin is solved for what rounding d to float16 leaves.
	d, dmin = roundScale(float32(x)), oldMin
	if a22 > 0 {
		dmin = roundScale(float32((b2 - float64(d)*a12) / a22))
	}
	if d*oldD <= 0 || dmin*oldMin <= 0 {
		return oldD, oldMin
	}
	return d, dmin
}
