package fit

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// Super-blocks of groups with a scale each and no minimum, with a codebook: IQ4_XS.

// super is the search's state for one super-block.
type super struct {
	grid   *quant.Affine
	lv     *levels
	n      int // groups
	groups [maxGroups]group
	scale  [maxGroups]float32 // each group's own best, whatever the others need
}

// superFit is a choice of everything but the codes.
type superFit struct {
	err, d float32
	sc     [maxGroups]int8
	fit    [maxGroups]fit
}

// superStarts are the values of d that are tried, relative to the one with which the largest scale just fits. Far smaller
// ones are for super-blocks where an outlier had better be clipped.
var superStarts = [...]float32{1, 1.03, 1.06, 1.1, 0.7, 0.5}

func fitSuper(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	b := &bs[0]
	var s scratch
	s.load(w, importance)
	p := super{grid: g, lv: lv, n: g.Groups()}
	var top float32
	for k := range p.n {
		p.groups[k] = s.group(k*g.Group, g.Group)
		gr := &p.groups[k]
		if v := gr.largest(); v != 0 {
			var c scaleSearch
			c.search(lv, gr, v)
			c.refine(lv, gr)
			p.scale[k] = c.scale[0]
			top = max(top, abs(p.scale[k]))
		}
	}
	b.D, b.DMin = 0, 0
	clear(b.Sc)
	clear(b.M)
	if top == 0 {
		return
	}
	d := top / float32(-g.Scales.Min)
	best := superFit{err: float32(math.Inf(1))}
	for _, r := range superStarts {
		// Scales.Min reaches one farther than Scales.Max: either sign may suit the group with the largest scale.
		p.start(&best, d*r)
		p.start(&best, -d*r)
	}
	p.polish(&best)
	b.D = best.d
	copy(b.Sc, best.sc[:])
}

// start tries d, and what least squares make of it.
func (p *super) start(best *superFit, d float32) {
	c := superFit{d: roundScale(d)}
	if c.d == 0 {
		c.d = float32(math.Copysign(quantumF16, float64(d)))
	}
	for range maxRefine {
		p.assign(&c)
		if !(c.err < best.err) {
			return
		}
		*best = c
		if !p.solve(&c) {
			return
		}
	}
}

// assign chooses each group's scale next to its own best, below or above.
func (p *super) assign(c *superFit) {
	c.err = 0
	for k := range p.n {
		below := p.near(c, k)
		above := min(below+1, p.grid.Scales.Max)
		c.fit[k], c.sc[k] = p.lv.measure(&p.groups[k], c.d*float32(below), 0), int8(below)
		if f := p.lv.measure(&p.groups[k], c.d*float32(above), 0); f.Err < c.fit[k].Err {
			c.fit[k], c.sc[k] = f, int8(above)
		}
		c.err += c.fit[k].Err
	}
}

// near returns the multiple of c.d next below group k's own best scale.
func (p *super) near(c *superFit, k int) int {
	q := min(max(p.scale[k]/c.d, float32(p.grid.Scales.Min)), float32(p.grid.Scales.Max))
	return int(math.Floor(float64(q)))
}

// solve sets d to the least-squares solution for the codes, and reports whether it changed.
func (p *super) solve(c *superFit) bool {
	var num, den float64
	for k, f := range c.fit[:p.n] {
		q := float64(c.sc[k])
		num += q * float64(f.LX)
		den += q * q * float64(f.LL)
	}
	if den <= 0 {
		return false
	}
	d := roundScale(float32(num / den))
	if d == c.d || d == 0 {
		return false
	}
	c.d = d
	return true
}

// superRounds bounds the rounds of polish; more brought nothing.
const superRounds = 2

// polish alternates a wider search of each group's scale and the solution for d.
func (p *super) polish(best *superFit) {
	for range superRounds {
		p.sweep(best)
		c := *best
		if !p.solve(&c) {
			return
		}
		c.err = 0
		for k := range p.n {
			c.fit[k] = p.lv.measure(&p.groups[k], c.d*float32(c.sc[k]), 0)
			c.err += c.fit[k].Err
		}
		if !(c.err < best.err) {
			return
		}
		*best = c
	}
}

// superWindow is how far sweep looks to either side.
const superWindow = 8

// sweep tries for each group the scales around its own best, and their negatives.
func (p *super) sweep(c *superFit) {
	c.err = 0
	for k := range p.n {
		q := p.near(c, k)
		var t tries
		var sc [maxTries]int8
		for i := 1 - superWindow; i <= superWindow; i++ {
			for _, v := range [2]int{q + i, -q - i} {
				if v >= p.grid.Scales.Min && v <= p.grid.Scales.Max {
					sc[t.n] = int8(v)
					t.add(c.d*float32(v), 0)
				}
			}
		}
		t.measure(p.lv, &p.groups[k])
		for i, f := range t.fit[:t.n] {
			if f.Err < c.fit[k].Err {
				c.fit[k], c.sc[k] = f, sc[i]
			}
		}
		c.err += c.fit[k].Err
	}
}
