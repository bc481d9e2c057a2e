package fit

import (
	"math"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/quant"
)

// Super-blocks of words: IQ1, IQ2, IQ3. A group's own best scale is searched first, rounding it to words for every scale
// that is tried; then the block's float16 number, of which the groups' scales are odd multiples. 16 groups are searched at a
// time, one in each lane: those of one block or two.

// lattice is the search for one grid.
type lattice struct {
	grid   *quant.Lattice
	top    float32   // the largest level
	rms    float32   // of the codebook's levels
	levels []float32 // those that are not 0
}

// NewLattice gives g its search.
func NewLattice(g quant.Lattice) *quant.Lattice {
	grid := quant.NewLattice(g)
	s := &lattice{grid: grid}
	var sum float64
	for _, l := range g.Codebook.Levels {
		s.top = max(s.top, float32(l))
		sum += float64(l) * float64(l)
		if l > 0 {
			s.levels = append(s.levels, float32(l))
		}
	}
	s.rms = float32(math.Sqrt(sum / float64(len(g.Codebook.Levels))))
	grid.Fitter = s
	return grid
}

// Fit is quant.Grid's. There is no less effort than all: GPTQ's error would be 1 to 4% larger, descent or not.
func (s *lattice) Fit(b []quant.Block, w, importance []float32, _ quant.Effort) {
	p := wordSearches.Get().(*words)
	defer wordSearches.Put(p)
	p.lattice = s
	n, together := s.grid.Block, kernels.Lanes/s.grid.Groups()
	for i := 0; i < len(b); i += together {
		end := min(i+together, len(b))
		var imp []float32
		if importance != nil {
			imp = importance[i*n : end*n]
		}
		p.fit(b[i:end], w[i*n:end*n], imp)
	}
}

var wordSearches = sync.Pool{New: func() any { return new(words) }}

// words is the search's state for some blocks, whose groups are in the lanes.
type words struct {
	*lattice
	scratch
	rounder quant.Rounder
	// For each column of the groups: the weights, their importance, the product of both; codes, and their products with
	// importance.
	x, wt, wx, level, weighted [maxGroup]kernels.Lane
	wxx                        kernels.Lane // Σ wt·x²
	scale                      kernels.Lane // each group's own best, whatever the others need
	ll                         kernels.Lane // Σ wt·code² there: what a scale beside it costs
}

// wordsFit is a choice of everything but the codes, for each block.
type wordsFit struct {
	d   [kernels.Lanes]float32 // of each block
	err [kernels.Lanes]float64
	sc  [kernels.Lanes]int8 // of each group
	lx  kernels.Lane
	ll  kernels.Lane
}

// fit searches the scales of as many blocks as the lanes hold, or fewer.
func (p *words) fit(b []quant.Block, w, importance []float32) {
	size, length, groups := p.grid.Block, p.grid.Group, p.grid.Groups()
	var largest, sum, root kernels.Lane // of each group
	p.wxx = kernels.Lane{}
	for i := range kernels.Lanes {
		k := i % groups
		if i/groups >= len(b) {
			for j := range length {
				p.x[j][i], p.wt[j][i], p.wx[j][i] = 0, 0, 0
			}
			continue
		}
		if k == 0 {
			at := i / groups * size
			var imp []float32
			if importance != nil {
				imp = importance[at : at+size]
			}
			p.load(w[at:at+size], imp)
		}
		gr := p.group(k*length, length)
		largest[i], sum[i], p.wxx[i] = abs(gr.largest()), gr.w, gr.wxx
		for j, v := range gr.x {
			p.x[j][i], p.wt[j][i], p.wx[j][i] = v, gr.wt[j], float32(gr.wt[j]*v)
		}
		if gr.w > 0 {
			root[i] = float32(math.Sqrt(float64(gr.wxx) / float64(gr.w)))
		}
	}
	p.own(&largest, &sum, &root)
	var best wordsFit
	for i := range b {
		b[i].D, b[i].DMin = 0, 0
		for k := range groups {
			b[i].Sc[k], b[i].M[k] = 1, 0
			best.err[i] += float64(p.wxx[i*groups+k]) // that of zeros
		}
	}
	starts := p.starts(len(b))
	for s := range starts {
		p.try(&best, &starts[s], len(b))
	}
	for i := range b {
		if b[i].D = best.d[i]; b[i].D != 0 {
			copy(b[i].Sc, best.sc[i*groups:(i+1)*groups])
		}
	}
}

// measure rounds the groups to their scales, and returns Σ wt·q·x and Σ wt·q² over the codes q.
func (p *words) measure(scale *kernels.Lane) (lx, ll kernels.Lane) {
	n := p.grid.Group
	var inverses kernels.Lane
	for i, v := range scale {
		inverses[i] = inverse(v)
	}
	level, weighted := p.level[:n], p.weighted[:n]
	p.grid.RoundLanes(&p.rounder, level, p.x[:n], p.wt[:n], &inverses)
	for j := range level {
		for i, q := range level[j] {
			weighted[j][i] = p.wt[j][i] * q
		}
	}
	return columns.Dot(level, p.wx[:n]), columns.Dot(level, weighted)
}

// Of a group's scale these multiples are tried: of the one with which its largest weight has the largest level, and of the
// one with which its root mean square is the levels'.
var (
	ofLargest = [...]float32{0.55, 0.65, 0.72, 0.8, 0.86, 0.92, 0.98, 1.04, 1.12, 1.25}
	ofSquares = [...]float32{0.75, 1, 1.3}
)

// ownRounds is how often the best of a group's scales is used to round, and solved, again.
const ownRounds = 3

// evenlyLarge is how much larger than the root mean square the largest weight of a group is at most where all may be at one
// level, whichever.
const evenlyLarge = 1.5

// own finds each group's own best scale.
func (p *words) own(largest, sum, root *kernels.Lane) {
	p.scale, p.ll = kernels.Lane{}, kernels.Lane{}
	var most [kernels.Lanes]float64 // lx²/ll: what the best scale for the codes takes off the error
	try := func(scale *kernels.Lane) {
		lx, ll := p.measure(scale)
		for i := range scale {
			if largest[i] == 0 || sum[i] == 0 || scale[i] == 0 || !(lx[i] > 0) {
				continue
			}
			if e := float64(lx[i]) * float64(lx[i]) / float64(ll[i]); e > most[i] {
				most[i], p.scale[i], p.ll[i] = e, float32(lx[i]/ll[i]), ll[i]
			}
		}
	}
	multiple := func(of *kernels.Lane, share float32) {
		scale := *of
		for i := range scale {
			scale[i] *= share
		}
		try(&scale)
	}
	for _, r := range ofLargest {
		multiple(largest, r/p.top)
	}
	for _, r := range ofSquares {
		multiple(root, r/p.rms)
	}
	even, some := kernels.Lane{}, false
	for i := range even {
		if largest[i] < evenlyLarge*root[i] {
			even[i], some = root[i], true
		}
	}
	if some {
		for _, l := range p.levels {
			multiple(&even, 1/l)
		}
	}
	for range ownRounds {
		before := p.scale
		try(&before)
		if p.scale == before {
			break
		}
	}
}

const (
	latticeSteps  = 48  // values of d that are looked at
	latticeLow    = 0.5 // the smallest, relative to that with which the largest scale just fits
	latticeHigh   = 1.3
	latticeStarts = 3 // of the values of d that promise least error
)

// starts returns, for each of n blocks, values of d that promise least error, going by what each group's least-squares problem
// says that another scale costs. They are 0 for a block of zeros.
func (p *words) starts(n int) (d [latticeStarts][kernels.Lanes]float32) {
	groups := p.grid.Groups()
	for b := range n {
		scales, ll := p.scale[b*groups:(b+1)*groups], p.ll[b*groups:(b+1)*groups]
		var largest float32
		for _, v := range scales {
			largest = max(largest, v)
		}
		if largest == 0 {
			continue
		}
		fits := float64(largest) / (float64(p.grid.Step) * float64(p.grid.MaxScale))
		errs := [latticeStarts]float64{math.Inf(1), math.Inf(1), math.Inf(1)}
		for i := range latticeSteps {
			v := roundScale(float32(fits * (latticeLow + (latticeHigh-latticeLow)*float64(i)/(latticeSteps-1))))
			if v == 0 {
				v = quantumF16
			}
			var sum float64
			for k, scale := range scales {
				unit := float64(v) * float64(p.grid.Step)
				off := unit*float64(p.odd(float64(scale)/unit)) - float64(scale)
				sum += float64(ll[k]) * off * off
			}
			for j := range errs {
				if d[j][b] == v && errs[j] == sum {
					break
				}
				if sum < errs[j] {
					for k := latticeStarts - 1; k > j; k-- {
						errs[k], d[k][b] = errs[k-1], d[k-1][b]
					}
					errs[j], d[j][b] = sum, v
					break
				}
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

// try takes d to best for the blocks where it is better, and what least squares make of it.
func (p *words) try(best *wordsFit, d *[kernels.Lanes]float32, n int) {
	groups := p.grid.Groups()
	c := wordsFit{d: *d}
	for range maxRefine {
		p.assign(&c, n)
		going := false
		for b := range n {
			if c.d[b] == 0 || !(c.err[b] < best.err[b]) {
				c.d[b] = 0 // no further
				continue
			}
			best.err[b], best.d[b] = c.err[b], c.d[b]
			var num, den float64
			for i := b * groups; i < (b+1)*groups; i++ {
				best.sc[i] = c.sc[i]
				sc := float64(c.sc[i])
				num += sc * float64(c.lx[i])
				den += sc * sc * float64(c.ll[i])
			}
			v := roundScale(float32(num / (den * float64(p.grid.Step))))
			if v == c.d[b] || !(v > 0) {
				v = 0
			}
			c.d[b] = v
			going = going || v != 0
		}
		if !going {
			return
		}
	}
}

// assign chooses each group's scale next to its own best.
func (p *words) assign(c *wordsFit, n int) {
	groups := p.grid.Groups()
	var near [kernels.Lanes]int8
	var units kernels.Lane
	for i := range n * groups {
		units[i] = c.d[i/groups] * p.grid.Step
		near[i] = 1
		if units[i] > 0 {
			near[i] = p.odd(float64(p.scale[i]) / float64(units[i]))
		}
	}
	var least [kernels.Lanes]float64
	for step, off := range [3]int8{0, -2, 2} {
		var scale kernels.Lane
		var sc [kernels.Lanes]int8
		for i := range n * groups {
			if sc[i] = near[i] + off; sc[i] >= 1 && int(sc[i]) <= p.grid.MaxScale {
				scale[i] = units[i] * float32(sc[i])
			}
		}
		lx, ll := p.measure(&scale)
		for i := range n * groups {
			if scale[i] == 0 {
				continue
			}
			s := float64(scale[i])
			if e := float64(p.wxx[i]) - s*(2*float64(lx[i])-s*float64(ll[i])); step == 0 || e < least[i] {
				least[i], c.sc[i], c.lx[i], c.ll[i] = e, sc[i], lx[i], ll[i]
			}
		}
	}
	for b := range n {
		c.err[b] = 0
		for _, e := range least[b*groups : (b+1)*groups] {
			c.err[b] += e
		}
	}
}
