package ggml

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// Super-blocks of groups with a scale each and no minimum, whose levels are whole numbers: Q3_K, Q6_K.

// superLanes is the search's state for the super-blocks that share the lanes.
type superLanes struct {
	grid   *quant.Grid
	lv     *levels
	s      lanes
	n      int // groups of a super-block
	blocks int
	own    kernels.Lattice // each group's own best scale

	d    [kernels.Lanes]float32 // by super-block
	sc   kernels.Lane           // the multiple of d that is chosen for each group
	fits [kernels.Lanes]fit
}

// superLaneSteps are the values of d that are tried, with either sign, relative to the one with which the largest scale
// just fits. Far smaller ones are for super-blocks where an outlier had better be clipped.
var superLaneSteps = [...]float32{0.5, 0.7, 0.97, 1, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.08, 1.1}

// fitSupers fits as many super-blocks as have room in the lanes.
func fitSupers(g *quant.Grid, lv *levels, bs []quant.Block, w, importance []float32) {
	p := superLanes{grid: g, lv: lv, n: g.Groups(), blocks: len(bs)}
	p.s.load(w, importance, g.Group, g.Block)
	p.s.revive()
	p.free()
	p.start()
	for range superRounds {
		p.sweep()
		p.solve()
	}
	for i := range bs {
		b := &bs[i]
		b.D, b.DMin = p.d[i], 0
		clear(b.M)
		for k := range p.n {
			b.Sc[k] = int8(p.sc[i*p.n+k])
		}
		if v, ok := p.constant(i); ok {
			d, sc := constantScale(g, v)
			b.D = d
			for k := range b.Sc {
				b.Sc[k] = int8(sc)
			}
		}
	}
}

// constant returns the value, not 0, that all weights of super-block b have.
func (p *superLanes) constant(b int) (v float32, ok bool) {
	v = p.s.Lo[b*p.n]
	for i := b * p.n; i < (b+1)*p.n; i++ {
		if p.s.Lo[i] != v || p.s.Hi[i] != v {
			return 0, false
		}
	}
	return v, v != 0
}

// free finds what suits each group, whatever the others need.
func (p *superLanes) free() {
	s := &p.s
	lo, hi := int32(p.lv.lo), int32(p.lv.hi)
	var best kernels.BestScale
	top := s.top()
	inverse := invert(&top)
	best.Search(s.x(), s.wt(), &inverse, p.lv.scan, scaleRounds, lo, hi)
	if s.weighted {
		important := s.mostImportant()
		inverse := invert(&important)
		best.Search(s.x(), s.wt(), &inverse, p.lv.scan, scaleRounds, lo, hi)
	}
	p.own = kernels.Lattice{Scale: best.Scale, LL: best.LL}
}

// start chooses d by what rounding each group's own scale costs.
func (p *superLanes) start() {
	var steps [2 * len(superLaneSteps)]kernels.Range
	var errs [len(steps)]kernels.Lane
	for b := range p.blocks {
		var top float32
		for _, v := range p.own.Scale[b*p.n : (b+1)*p.n] {
			top = max(top, abs(v))
		}
		if top == 0 {
			continue
		}
		d := top / float32(-p.grid.ScaleMin)
		for k := range steps {
			step := d * superLaneSteps[k/2]
			// ScaleMin reaches one farther than ScaleMax: either sign may suit the group with the largest scale.
			if k%2 == 1 {
				step = -step
			}
			if r := roundScale(step); r != 0 {
				step = r
			} else {
				step = float32(math.Copysign(quantumF16, float64(step)))
			}
			for i := b * p.n; i < (b+1)*p.n; i++ {
				steps[k].Scale[i] = step
			}
		}
	}
	for k := range steps {
		for i := range steps[k].Minimum {
			steps[k].Minimum[i] = 1 // of no consequence
		}
	}
	lo, hi := float32(p.grid.ScaleMin), float32(p.grid.ScaleMax)
	p.own.Errors(errs[:], steps[:], lo, hi, 0)
	for b := range p.blocks {
		least := float32(math.Inf(1))
		for k := range errs {
			var sum float32
			for _, e := range errs[k][b*p.n : (b+1)*p.n] {
				sum += e
			}
			if sum < least {
				least, p.d[b] = sum, steps[k].Scale[b*p.n]
			}
		}
		for i := b * p.n; i < (b+1)*p.n && p.d[b] != 0; i++ {
			p.sc[i], _, _ = p.own.Nearest(i, p.d[b], 1, lo, hi, 0)
		}
	}
	for i := range p.fits {
		p.fits[i].Err = float32(math.Inf(1))
	}
}

// superLaneWindow is how far sweep looks to either side.
const superLaneWindow = 4

// sweep tries for each group the scales around its own best, and their negatives.
func (p *superLanes) sweep() {
	var ranges [4 * superLaneWindow]kernels.Range
	var sc [len(ranges)]kernels.Lane
	lo, hi := float32(p.grid.ScaleMin), float32(p.grid.ScaleMax)
	for i := range p.blocks * p.n {
		d := p.d[i/p.n]
		if d == 0 {
			continue
		}
		q := float32(math.Floor(float64(min(max(p.own.Scale[i]/d, lo), hi))))
		for k := range 2 * superLaneWindow {
			v := q + float32(k+1-superLaneWindow)
			sc[k][i], sc[k+2*superLaneWindow][i] = min(max(v, lo), hi), min(max(-v, lo), hi)
			ranges[k].Scale[i], ranges[k+2*superLaneWindow].Scale[i] = d*sc[k][i], d*sc[k+2*superLaneWindow][i]
		}
	}
	var best kernels.BestRange
	for i := range best.Err {
		best.Err[i], best.Index[i] = p.fits[i].Err, -1
	}
	best.Choose(0, p.s.x(), p.s.wt(), ranges[:], int32(p.lv.lo), int32(p.lv.hi))
	for i := range p.blocks * p.n {
		if k := best.Index[i]; k >= 0 {
			p.sc[i] = sc[k][i]
		}
	}
}

// solve sets each super-block's d to the least-squares solution for the codes if that is better.
func (p *superLanes) solve() {
	d := p.d
	p.measure(&p.fits, &d)
	for b := range p.blocks {
		var num, den float64
		for i := b * p.n; i < (b+1)*p.n; i++ {
			q := float64(p.sc[i])
			num += q * float64(p.fits[i].LX)
			den += q * q * float64(p.fits[i].LL)
		}
		if den > 0 {
			d[b] = roundScale(float32(num / den))
		}
	}
	var fits [kernels.Lanes]fit
	p.measure(&fits, &d)
	for b := range p.blocks {
		var now, then float32
		for i := b * p.n; i < (b+1)*p.n; i++ {
			now += p.fits[i].Err
			then += fits[i].Err
		}
		if then < now {
			p.d[b] = d[b]
			copy(p.fits[b*p.n:(b+1)*p.n], fits[b*p.n:])
		}
	}
}

// measure measures the groups with d.
func (p *superLanes) measure(fits *[kernels.Lanes]fit, d *[kernels.Lanes]float32) {
	var c kernels.Candidates
	for i := range p.blocks * p.n {
		c.Scale[i] = d[i/p.n] * p.sc[i]
	}
	c.MeasureEach(kernels.Lanes, p.s.x(), p.s.wt(), int32(p.lv.lo), int32(p.lv.hi))
	for i := range fits {
		fits[i] = fit(c.Sums(i))
	}
}
