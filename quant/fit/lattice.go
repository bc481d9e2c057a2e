package fit

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// Super-blocks of words: IQ1, IQ2, IQ3. A group's own best scale is searched first, rounding it to words for every scale
// that is tried; then the block's float16 number, of which the groups' scales are odd multiples.

// lattice is the search for one grid.
type lattice struct {
	grid *quant.Lattice
	top  float32 // the largest level
	rms  float32 // of the codebook's levels
}

// NewLattice gives g its search.
func NewLattice(g quant.Lattice) *quant.Lattice {
	grid := quant.NewLattice(g)
	s := &lattice{grid: grid}
	var sum float64
	for _, l := range g.Codebook.Levels {
		s.top = max(s.top, float32(l))
		sum += float64(l) * float64(l)
	}
	s.rms = float32(math.Sqrt(sum / float64(len(g.Codebook.Levels))))
	grid.Fitter = s
	return grid
}

// Fit is quant.Grid's.
func (s *lattice) Fit(b []quant.Block, w, importance []float32, _ quant.Effort) {
	n := s.grid.Block
	for i := range b {
		var imp []float32
		if importance != nil {
			imp = importance[i*n : (i+1)*n]
		}
		s.fit(&b[i], w[i*n:(i+1)*n], imp)
	}
}

// words is the search's state for one block.
type words struct {
	*lattice
	scratch
	n      int
	groups [maxGroups]group
	scale  [maxGroups]float32 // each group's own best, whatever the others need
	ll     [maxGroups]float64 // Σ wt·code² there: what a scale beside it costs
	codes  [maxGroup]int8
}

// wordsFit is a choice of everything but the codes.
type wordsFit struct {
	err, d float32
	sc     [maxGroups]int8
	lx, ll [maxGroups]float64
}

func (s *lattice) fit(b *quant.Block, w, importance []float32) {
	p := words{lattice: s, n: s.grid.Groups()}
	p.load(w, importance)
	b.D, b.DMin = 0, 0
	var largest float32
	var zeros float64 // the error of zeros
	for k := range p.n {
		b.Sc[k], b.M[k] = 1, 0
		p.groups[k] = p.group(k*s.grid.Group, s.grid.Group)
		p.own(k)
		largest = max(largest, p.scale[k])
		zeros += float64(p.groups[k].wxx)
	}
	if largest == 0 {
		return
	}
	best := wordsFit{err: float32(zeros)}
	for _, d := range p.starts(largest) {
		p.try(&best, d)
	}
	b.D = best.d
	if best.d != 0 {
		copy(b.Sc, best.sc[:p.n])
	}
}

// measure rounds group k to a scale, and returns the error with Σ wt·q·x and Σ wt·q² over its codes q.
func (p *words) measure(k int, scale float32) (err, lx, ll float64) {
	gr := &p.groups[k]
	codes := p.codes[:len(gr.x)]
	p.grid.RoundGroup(codes, gr.x, gr.wt, scale)
	for j, q := range codes {
		x, wt, l := float64(gr.x[j]), float64(gr.wt[j]), float64(q)
		d := x - float64(scale)*l
		err += wt * d * d
		lx += wt * l * x
		ll += wt * l * l
	}
	return err, lx, ll
}

// Of a group's scale these multiples are tried: of the one with which its largest weight has the largest level, and of the
// one with which its root mean square is the levels'.
var (
	ofLargest = [...]float32{0.55, 0.65, 0.72, 0.8, 0.86, 0.92, 0.98, 1.04, 1.12, 1.25}
	ofSquares = [...]float32{0.75, 1, 1.3}
)

// evenlyLarge is how much larger than the root mean square the largest weight of a group is at most where all may be at one
// level, whichever.
const evenlyLarge = 1.5

// ownRounds is how often the best of a group's scales is used to round, and solved, again.
const ownRounds = 3

// own finds group k's own best scale.
func (p *words) own(k int) {
	gr := &p.groups[k]
	p.scale[k], p.ll[k] = 0, 0
	largest := abs(gr.largest())
	if largest == 0 || gr.w == 0 {
		return
	}
	least := math.Inf(1)
	try := func(scale float32) (solved float32) {
		_, lx, ll := p.measure(k, scale)
		if !(lx > 0) {
			return 0
		}
		// The error of the best scale for these codes.
		if e := float64(gr.wxx) - lx*lx/ll; e < least {
			least, p.scale[k], p.ll[k] = e, float32(lx/ll), ll
			return p.scale[k]
		}
		return 0
	}
	for _, r := range ofLargest {
		try(r * largest / p.top)
	}
	root := float32(math.Sqrt(float64(gr.wxx) / float64(gr.w)))
	for _, r := range ofSquares {
		try(r * root / p.rms)
	}
	if largest < evenlyLarge*root {
		for _, l := range p.grid.Codebook.Levels {
			if l > 0 {
				try(root / float32(l))
			}
		}
	}
	for range ownRounds {
		if try(p.scale[k]) == 0 {
			break
		}
	}
}

const (
	latticeStarts = 3   // of the values of d that promise least error
	latticeSteps  = 48  // values of d that are looked at
	latticeLow    = 0.5 // the smallest, relative to that with which the largest scale just fits
	latticeHigh   = 1.3
)

// starts returns values of d that promise least error, going by what each group's least-squares problem says that another
// scale costs.
func (p *words) starts(largest float32) (d [latticeStarts]float32) {
	fits := float64(largest) / (float64(p.grid.Step) * float64(p.grid.MaxScale))
	var errs [latticeStarts]float64
	for i := range errs {
		errs[i] = math.Inf(1)
	}
	for i := range latticeSteps {
		v := roundScale(float32(fits * (latticeLow + (latticeHigh-latticeLow)*float64(i)/(latticeSteps-1))))
		if v == 0 {
			v = quantumF16
		}
		var sum float64
		for k := range p.n {
			unit := float64(v) * float64(p.grid.Step)
			d := unit*float64(p.odd(float64(p.scale[k])/unit)) - float64(p.scale[k])
			sum += p.ll[k] * d * d
		}
		for j := range errs {
			if d[j] == v && errs[j] == sum {
				break
			}
			if sum < errs[j] {
				copy(errs[j+1:], errs[j:])
				copy(d[j+1:], d[j:])
				errs[j], d[j] = sum, v
				break
			}
		}
	}
	return d
}

// odd returns the nearest odd multiple that there is.
func (p *words) odd(v float64) int8 {
	v = min(max(v, 1), float64(p.grid.MaxScale))
	return int8(2*math.Floor(v/2) + 1)
}

// try takes d to best if it is better, and what least squares make of it.
func (p *words) try(best *wordsFit, d float32) {
	for range maxRefine {
		if d == 0 {
			return
		}
		c := wordsFit{d: d}
		p.assign(&c)
		if !(c.err < best.err) {
			return
		}
		*best = c
		var num, den float64
		for k := range p.n {
			sc := float64(c.sc[k])
			num += sc * c.lx[k]
			den += sc * sc * c.ll[k]
		}
		if d = roundScale(float32(num / (den * float64(p.grid.Step)))); d == c.d || !(d > 0) {
			return
		}
	}
}

// assign chooses each group's scale next to its own best.
func (p *words) assign(c *wordsFit) {
	var sum float64
	for k := range p.n {
		unit := c.d * p.grid.Step
		near := p.odd(float64(p.scale[k]) / float64(unit))
		least := math.Inf(1)
		for _, sc := range [3]int8{near, near - 2, near + 2} {
			if sc < 1 || int(sc) > p.grid.MaxScale {
				continue
			}
			if e, lx, ll := p.measure(k, unit*float32(sc)); e < least {
				least, c.sc[k], c.lx[k], c.ll[k] = e, sc, lx, ll
			}
		}
		sum += least
	}
	c.err = float32(sum)
}
