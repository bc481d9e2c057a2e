package fit

import (
	"math"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
)

// Super-blocks of groups with a scale each and no minimum, whose levels are whole numbers: Q3_K, Q6_K.

// superLanes is the search's state for the super-blocks that share the lanes.
type superLanes struct {
	grid   *quant.Affine
	lv     *levels
	s      lanes
	n      int // groups of a super-block
	blocks int
	own    search.Lattice // each group's own best scale

	d    [kernels.Lanes]float32 // by super-block
	sc   kernels.Lane           // the multiple of d that is chosen for each group
	fits [kernels.Lanes]fit

	steps [2 * len(superLaneSteps)]search.Range // work space
	errs  [2 * len(superLaneSteps)]kernels.Lane
}

var superLanesPool = sync.Pool{New: func() any {
	p := new(superLanes)
	for k := range p.steps {
		for i := range p.steps[k].Minimum {
			p.steps[k].Minimum[i] = 1 // of no consequence
		}
	}
	return p
}}

// superLaneSteps are the values of d that are tried, with either sign, relative to the one with which the largest scale
// just fits. Far smaller ones are for super-blocks where an outlier had better be clipped.
var superLaneSteps = [...]float32{0.5, 0.7, 0.97, 1, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.08, 1.1}

// fitSupers fits as many super-blocks as have room in the lanes.
func fitSupers(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	p := superLanesPool.Get().(*superLanes)
	defer superLanesPool.Put(p)
	p.grid, p.lv, p.n, p.blocks = g, lv, g.Groups(), len(bs)
	p.d, p.sc = [kernels.Lanes]float32{}, kernels.Lane{}
	p.s.load(w, importance, g.Group, g.Block)
	p.s.revive()
	p.free()
	p.start()
	rounds := 1 // more make errors smaller by 0.1% without importances
	if p.s.weighted {
		rounds = superRounds
	}
	for range rounds {
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
	var best search.BestScale
	top := s.top()
	inverse := invert(&top)
	best.Search(s.x(), s.weights(), &inverse, p.lv.scan, scaleRounds, lo, hi)
	if s.weighted {
		important := s.mostImportant()
		inverse := invert(&important)
		best.Search(s.x(), s.weights(), &inverse, p.lv.scan, scaleRounds, lo, hi)
	}
	p.own = search.Lattice{Scale: best.Scale, LL: best.LL}
}

// start chooses d by what rounding each group's own scale costs.
func (p *superLanes) start() {
	for b := range p.blocks {
		var top float32
		for _, v := range p.own.Scale[b*p.n : (b+1)*p.n] {
			top = max(top, abs(v))
		}
		d := top / float32(-p.grid.Scales.Min)
		for k, r := range superLaneSteps {
			step := roundScale(d * r)
			if step == 0 && top != 0 {
				step = quantumF16
			}
			// Scales.Min reaches one farther than Scales.Max: either sign may suit the group with the largest scale.
			for i := b * p.n; i < (b+1)*p.n; i++ {
				p.steps[2*k].Scale[i], p.steps[2*k+1].Scale[i] = step, -step
			}
		}
	}
	p.own.Errors(p.errs[:], p.steps[:], float32(p.grid.Scales.Min), float32(p.grid.Scales.Max), 0)
	for b := range p.blocks {
		least := float32(math.Inf(1))
		for k := range p.errs {
			var sum float32
			for _, e := range p.errs[k][b*p.n : (b+1)*p.n] {
				sum += e
			}
			if sum < least {
				least, p.d[b] = sum, p.steps[k].Scale[b*p.n]
			}
		}
	}
	for i := range p.fits {
		p.fits[i].Err = float32(math.Inf(1))
	}
}

// superLaneWindow is how far sweep looks to either side.
const superLaneWindow = 4

// sweepUp and sweepDown go from one scale to the next.
var sweepUp, sweepDown = func() (up, down [2 * superLaneWindow][2]float32) {
	for k := range up {
		up[k][0], down[k][0] = 1, -1
	}
	return up, down
}()

// sweep tries for each group the scales around its own best, and, which is of use where there are importances only, their
// negatives.
func (p *superLanes) sweep() {
	var w search.Window
	lo, hi := float32(p.grid.Scales.Min), float32(p.grid.Scales.Max)
	best := search.BestMultiple{Q: p.sc}
	for i := range p.blocks * p.n {
		best.Err[i] = p.fits[i].Err
		if d := p.d[i/p.n]; d != 0 {
			w.Scale[i] = d
			w.Q[i] = float32(math.Floor(float64(min(max(p.own.Scale[i]/d, lo), hi)))) + 1 - superLaneWindow
		}
	}
	try := func(steps [][2]float32) {
		best.Choose(p.s.x(), p.s.weights(), &w, steps, int32(p.lv.lo), int32(p.lv.hi), lo, hi, 0)
	}
	try(sweepUp[:])
	if p.s.weighted {
		for i := range w.Q {
			w.Q[i] = -w.Q[i]
		}
		try(sweepDown[:])
	}
	p.sc = best.Q
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
	var c search.Candidates
	for i := range p.blocks * p.n {
		c.Scale[i] = d[i/p.n] * p.sc[i]
	}
	c.MeasureEach(kernels.Lanes, p.s.x(), p.s.wt(), int32(p.lv.lo), int32(p.lv.hi))
	for i := range fits {
		fits[i] = fit(c.Sums(i))
	}
}
