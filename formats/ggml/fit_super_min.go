package ggml

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// Super-blocks of groups with a scale and a minimum each: Q2_K, Q4_K, Q5_K.

// superMin is the search's state for one super-block.
type superMin struct {
	grid   *quant.Grid
	lv     *levels
	n      int // groups
	groups [maxGroups]group
	lanes  superGroups
	// Each group's own best scale and minimum, whatever the others need: of either sign, and with a minimum of at least 0.
	free, own [maxGroups]struct{ scale, minimum float32 }
}

// superMinFit is a choice of everything but the codes.
type superMinFit struct {
	err, d, dmin float32
	sc, m        [maxGroups]int8
	fit          [maxGroups]fit
}

// superMinStarts are the values of d and dmin that are tried, relative to those with which the largest scale and the
// largest minimum just fit. Far smaller ones are for super-blocks where an outlier had better be clipped.
var superMinStarts = [...]struct{ d, dmin float32 }{
	{1, 1}, {1, 0.95}, {1, 1.05}, {0.95, 1}, {0.95, 0.95}, {0.95, 1.05}, {1.05, 1}, {1.05, 0.95}, {1.05, 1.05},
	{0.7, 1}, {0.5, 1}, {0.7, 0.7}, {0.5, 0.5},
}

// fitSuperMin searches with d and dmin above zero, where levels count up from a minimum of at most zero, and for the
// negative weights, which with both below zero amounts to levels that count down from a maximum of at least zero.
func fitSuperMin(g *quant.Grid, lv *levels, b *quant.Block, w, importance []float32) {
	var s scratch
	s.load(w, importance)
	p := superMin{grid: g, lv: lv, n: g.Groups()}
	zero := true
	for k := range p.n {
		p.groups[k] = s.group(k*g.Group, g.Group)
		gr := &p.groups[k]
		var m minSearch
		m.search(lv, gr)
		m.refine(lv, gr)
		p.free[k].scale, p.free[k].minimum = m.scale[0], m.minimum[0]
		zero = zero && m.scale[0] == 0 && m.minimum[0] == 0
	}
	b.D, b.DMin = 0, 0
	clear(b.Sc)
	clear(b.M)
	if zero {
		return
	}
	best, mirrored := superMinFit{err: float32(math.Inf(1))}, superMinFit{err: float32(math.Inf(1))}
	p.bound()
	p.lanes.load(p.groups[:p.n])
	p.start(&best, 1, 1)
	p.mirror()
	p.start(&mirrored, 1, 1)
	negative := mirrored.err < best.err
	if negative {
		best = mirrored
	} else {
		p.mirror()
	}
	for _, r := range superMinStarts[1:] {
		p.start(&best, r.d, r.dmin)
	}
	p.polish(&best)
	b.D, b.DMin = best.d, best.dmin
	if negative {
		b.D, b.DMin = 0-best.d, 0-best.dmin // not −0
	}
	copy(b.Sc, best.sc[:])
	copy(b.M, best.m[:])
}

// bound finds what suits each group with a minimum of at least 0.
func (p *superMin) bound() {
	p.own = p.free
	for k := range p.n {
		if p.free[k].minimum < 0 {
			p.own[k].scale, p.own[k].minimum = p.groups[k].fromZero(p.lv), 0
		}
	}
}

// mirror turns to the negative weights.
func (p *superMin) mirror() {
	for k := range p.n {
		gr := &p.groups[k]
		for j := range gr.x {
			gr.x[j] = -gr.x[j]
		}
		gr.wx = -gr.wx
		p.free[k].minimum = p.free[k].scale*p.lv.hi - p.free[k].minimum
	}
	p.bound()
	p.lanes.load(p.groups[:p.n])
}

// start tries the d and dmin that fit the largest scale and minimum, times r and rm, and what least squares make of them.
func (p *superMin) start(best *superMinFit, r, rm float32) {
	var top, topMin float32
	for k := range p.n {
		top, topMin = max(top, p.own[k].scale), max(topMin, p.own[k].minimum)
	}
	var c superMinFit
	c.d = max(roundScale(r*top/float32(p.grid.ScaleMax)), quantumF16)
	c.dmin = max(roundScale(rm*topMin/float32(p.grid.MinMax)), quantumF16)
	for range superMinRounds {
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

// superMinRounds bounds the rounds of start and polish; more brought nothing.
const superMinRounds = 3

// assign chooses each group's scale next to its own best, below or above, and the minimum to go with it.
func (p *superMin) assign(c *superMinFit) {
	var scale, minimum [2 * maxGroups]float32
	var sc, m [2 * maxGroups]int
	var fits [2 * maxGroups]fit
	for i := range 2 * p.n {
		k := i % p.n
		sc[i] = min(p.near(c, k)+i/p.n, p.grid.ScaleMax)
		scale[i], minimum[i] = c.d*float32(sc[i]), p.own[k].minimum
	}
	p.lanes.measure(p.lv, p.groups[:p.n], &scale, &minimum, &fits)
	for i := range 2 * p.n {
		m[i] = p.bestMinimum(c, i%p.n, scale[i], fits[i])
		minimum[i] = c.dmin * float32(m[i])
	}
	p.lanes.measure(p.lv, p.groups[:p.n], &scale, &minimum, &fits)
	c.err = 0
	for k := range p.n {
		i := k
		if fits[k+p.n].Err < fits[k].Err {
			i = k + p.n
		}
		c.fit[k], c.sc[k], c.m[k] = fits[i], int8(sc[i]), int8(m[i])
		c.err += fits[i].Err
	}
}

// near returns the multiple of c.d next below group k's own best scale.
func (p *superMin) near(c *superMinFit, k int) int {
	return int(min(max(p.own[k].scale/c.d, 0), float32(p.grid.ScaleMax)))
}

// bestMinimum returns the multiple of c.dmin that suits group k best with the given scale and the codes of f.
func (p *superMin) bestMinimum(c *superMinFit, k int, scale float32, f fit) int {
	gr := &p.groups[k]
	m := (scale*f.L - gr.wx) / gr.w / c.dmin
	return int(min(max(m+0.5, 0), float32(p.grid.MinMax)))
}

// solve sets d and dmin to the least-squares solution for the codes, and reports whether they changed.
func (p *superMin) solve(c *superMinFit) bool {
	var a11, a12, a22, b1, b2 float64
	for k, f := range c.fit[:p.n] {
		q, m := float64(c.sc[k]), -float64(c.m[k])
		a11 += q * q * float64(f.LL)
		a12 += q * m * float64(f.L)
		a22 += m * m * float64(p.groups[k].w)
		b1 += q * float64(f.LX)
		b2 += m * float64(p.groups[k].wx)
	}
	d, dmin := c.d, c.dmin
	switch det := a11*a22 - a12*a12; {
	case det > oneLevel*a11*a22:
		d, dmin = float32((b1*a22-b2*a12)/det), float32((b2*a11-b1*a12)/det)
	case a11 > 0:
		d = float32((b1 - float64(dmin)*a12) / a11)
	case a22 > 0:
		dmin = float32(b2 / a22)
	}
	d, dmin = roundScale(d), roundScale(dmin)
	if d == c.d && dmin == c.dmin || d <= 0 || dmin <= 0 {
		return false
	}
	c.d, c.dmin = d, dmin
	return true
}

// polish alternates a wider search of each group's scale and minimum and the solution for d and dmin.
func (p *superMin) polish(best *superMinFit) {
	p.sweep(best)
	for range superMinRounds {
		p.neighbours(best)
		c := *best
		if !p.solve(&c) {
			return
		}
		c.err = 0
		for k := range p.n {
			c.fit[k] = p.lv.measure(&p.groups[k], c.d*float32(c.sc[k]), c.dmin*float32(c.m[k]))
			c.err += c.fit[k].Err
		}
		if !(c.err < best.err) {
			return
		}
		*best = c
	}
}

// superMinWindow is how far sweep looks to either side.
const superMinWindow = 6

// sweep tries for each group the scales around its own best, with minima that keep the middle of the levels in place.
func (p *superMin) sweep(c *superMinFit) {
	c.err = 0
	for k := range p.n {
		own := p.own[k]
		mid := p.near(c, k)
		var t tries
		first := max(mid+1-superMinWindow, 0)
		for q := first; q <= min(mid+superMinWindow, p.grid.ScaleMax); q++ {
			scale := c.d * float32(q)
			t.add(scale, own.minimum+(scale-own.scale)*p.lv.hi/2)
		}
		t.measure(p.lv, &p.groups[k])
		var pairs superMinPairs
		for i, f := range t.fit[:t.n] {
			m := p.bestMinimum(c, k, t.scale[i], f)
			for j := m - 1; j <= m+1; j++ {
				pairs.add(p, c, first+i, j)
			}
		}
		pairs.choose(p, c, k)
		c.err += c.fit[k].Err
	}
}

// superMinPairs are multiples of d and dmin for one group.
type superMinPairs struct {
	tries
	sc, m [maxTries]int8
}

// add adds a pair if it is in range.
func (t *superMinPairs) add(p *superMin, c *superMinFit, q, m int) {
	if q < 0 || q > p.grid.ScaleMax || m < 0 || m > p.grid.MinMax {
		return
	}
	t.sc[t.n], t.m[t.n] = int8(q), int8(m)
	t.tries.add(c.d*float32(q), c.dmin*float32(m))
}

// choose sets group k's scale and minimum to the best pair if that is better.
func (t *superMinPairs) choose(p *superMin, c *superMinFit, k int) {
	t.measure(p.lv, &p.groups[k])
	for i, f := range t.fit[:t.n] {
		if f.Err < c.fit[k].Err {
			c.fit[k], c.sc[k], c.m[k] = f, t.sc[i], t.m[i]
		}
	}
}

// neighbours tries for each group the scales and minima next to its present ones.
func (p *superMin) neighbours(c *superMinFit) {
	c.err = 0
	for k := range p.n {
		q, m := int(c.sc[k]), int(c.m[k])
		var pairs superMinPairs
		for i := -1; i <= 1; i++ {
			for j := -1; j <= 1; j++ {
				if i != 0 || j != 0 {
					pairs.add(p, c, q+i, m+j)
				}
			}
		}
		pairs.choose(p, c, k)
		c.err += c.fit[k].Err
	}
}
