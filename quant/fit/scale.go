package fit

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
)

// One scale per block and no minimum: Q4_0, Q5_0, Q8_0, IQ4_NL, and the integers of servers' formats. The same search finds each group's own best in
// super-blocks.

func fitScale(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	b := &bs[0]
	var s scratch
	s.load(w, importance)
	group := s.group(0, g.Block)
	gr := &group
	b.D, b.DMin, b.Sc[0], b.M[0] = 0, 0, 1, 0
	top := gr.largest()
	if top == 0 {
		return
	}
	if d, ok := exactScale(g, lv, gr, top); ok {
		b.D = d
		return
	}
	var c scaleSearch
	c.search(lv, gr, top)
	best := lv.measure(gr, 0, 0).Err
	for _, scale := range c.scale[:c.n] {
		last := float32(math.Inf(1))
		for d := roundScaleOf(g, scale); ; {
			f := lv.measure(gr, d, 0)
			if f.Err < best {
				best, b.D = f.Err, d
			}
			if !(f.Err < last) {
				break
			}
			last = f.Err
			scale, _ = gr.solveScale(f, d)
			d = roundScaleOf(g, scale)
		}
	}
	// Least squares knows nothing of float16's steps, which are wide where it is subnormal.
	step := stepOf(g, b.D)
	for _, d := range [2]float32{roundScaleOf(g, b.D-step), roundScaleOf(g, b.D+step)} {
		if f := lv.measure(gr, d, 0); f.Err < best {
			best, b.D = f.Err, d
		}
	}
}

// scaleRounds is how often the best scale of a search is used to round, and solved, again; coarseRounds without
// importances, where a second time makes errors smaller by 0.1%.
const (
	scaleRounds  = 2
	coarseRounds = 1
)

// fitScales fits up to 16 blocks of one group.
func fitScales(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	s := lanesPool.Get().(*lanes)
	defer lanesPool.Put(s)
	d := s.fitScales(g, lv, w, importance)
	for i := range bs {
		b := &bs[i]
		b.D, b.DMin, b.Sc[0], b.M[0] = d[i], 0, 1, 0
	}
}

// OneScale returns the scales of up to 16 blocks of weights of equal importance, one after the other in w. The grid has one
// scale for each block and no minimum.
func (s *Search) OneScale(w []float32) kernels.Lane {
	l := lanesPool.Get().(*lanes)
	defer lanesPool.Put(l)
	return l.fitScales(s.grid, s.lv, w, nil)
}

// fitScales returns the scales of up to 16 blocks of one group.
func (s *lanes) fitScales(g *quant.Affine, lv *levels, w, importance []float32) (d kernels.Lane) {
	s.load(w, importance, g.Block, g.Block)
	x, wt := s.x(), s.weights()
	lo, hi := int32(lv.lo), int32(lv.hi)
	top := s.top()
	var best search.BestScale
	inverse := invert(&top)
	scan, rounds := lv.coarse, coarseRounds
	if s.weighted {
		scan, rounds = lv.scan, scaleRounds
	}
	best.Search(x, wt, &inverse, scan, rounds, lo, hi)
	if s.weighted {
		important := s.mostImportant()
		inverse := invert(&important)
		best.Search(x, wt, &inverse, lv.scan, scaleRounds, lo, hi)
	}
	d = best.Scale
	roundScales(&d)
	// Least squares knows nothing of float16's steps. They matter where float16 is subnormal, and a little where there are
	// many levels.
	manyLevels := s.weighted && lv.hi > 100
	var exact [kernels.Lanes]bool
	steps, measure := manyLevels, false
	for i := range s.n {
		steps = steps || abs(d[i]) < minNormalF16
		exact[i] = s.mayBeExact(lv, i, top[i])
		measure = measure || exact[i]
	}
	var chosen search.BestRange
	if steps || measure {
		var ranges [3]search.Range
		n := 1
		ranges[0].Scale = d
		for i := range s.n {
			chosen.Err[i] = float32(math.Inf(1))
		}
		if steps {
			n = len(ranges)
			for i, v := range d[:s.n] {
				var step float32 // 0 for a block that needs none: what is beside it must not matter
				if manyLevels || abs(v) < minNormalF16 {
					step = stepF16(v)
				}
				ranges[1].Scale[i], ranges[2].Scale[i] = roundScale(v-step), roundScale(v+step)
			}
		}
		chosen.Choose(0, x, wt, ranges[:n], lo, hi)
		for i := range s.n {
			d[i] = ranges[chosen.Index[i]].Scale[i]
		}
	}
	for i := range s.n {
		if s.Lo[i] == s.Hi[i] && s.Lo[i] != 0 {
			d[i], _ = constantScale(g, s.Lo[i])
			continue
		}
		if exact[i] && chosen.Err[i] > 0 {
			if v, ok := s.exactScale(g, lv, i, top[i]); ok {
				d[i] = v
			}
		}
	}
	return d
}

// mayBeExact is quick to say of most groups that they are not on the grid already. There all weights are multiples of a
// scale, and so is what is left of one over a multiple of another: 0, or not less than the scale. float32 has it exactly.
func (s *lanes) mayBeExact(lv *levels, i int, top float32) bool {
	least, tooSmall := s.Least[i], abs(top)/(-lv.lo*1.001)
	if least < tooSmall {
		return false
	}
	inverse := 1 / least
	for j := range s.x() {
		v := s.groups[j][i]
		multiple := float32(v*inverse+roundMagic) - roundMagic
		if r := abs(v - float32(multiple*least)); r > 0 && r < tooSmall {
			return false
		}
	}
	return true
}

// exactScale returns the scale with which group i is on the grid already, as those of a quantized checkpoint are.
func (s *lanes) exactScale(g *quant.Affine, lv *levels, i int, top float32) (d float32, ok bool) {
	var buf, wt [maxGroup]float32
	x := buf[:s.size]
	for j := range x {
		x[j], wt[j] = s.groups[j][i], 1
	}
	return exactScale(g, lv, &group{x: x, wt: wt[:s.size]}, top)
}

// exactScale returns the scale with which the weights are on the grid already, as those of a quantized checkpoint are.
func exactScale(g *quant.Affine, lv *levels, gr *group, top float32) (d float32, ok bool) {
	for c := g.CodeMin; c <= g.CodeMax; c++ {
		d := top / g.Level(int8(c)) // infinite for level 0
		if math.Float32bits(d)&0x1fff == 0 && roundScaleOf(g, d) == d && lv.exact(gr, d) {
			return d, true
		}
	}
	return 0, false
}

// exact reports whether measure would find no error. Nearly always the first weights already show one.
func (lv *levels) exact(gr *group, scale float32) bool {
	const few = 4
	for j := 0; j < len(gr.x); j += few {
		end := min(j+few, len(gr.x))
		if lv.measure(&group{x: gr.x[j:end], wt: gr.wt[j:end]}, scale, 0).Err != 0 {
			return false
		}
	}
	return true
}

// solveScale returns the scale that suits the levels of f best, f having been measured with the given one and no minimum,
// and the error that the same levels have then, or sumNoise.
func (gr *group) solveScale(f fit, scale float32) (newScale, err float32) {
	if f.LL <= 0 {
		return 0, f.Err
	}
	// Solving for the change, rather than for the scale itself, loses few digits of the error.
	lr := float32(float64(f.LX) - float64(scale)*float64(f.LL)) // Σ wt·l·(x−ŵ)
	return scale + lr/f.LL, max(f.Err-lr*lr/f.LL, sumNoise*gr.wxx)
}

// sumNoise is the share of Σ wt·x² below which an error is taken for zero. Groups of one or two values can be met in
// many ways, and rounding errors must not decide among them: the searches begin with the group's own range, which
// groups that are alike then agree on, and keep the first of equals.
const sumNoise = 1e-9

// scaleSearch keeps the best scales that it has met, the best first, and their errors.
type scaleSearch struct {
	n          int
	scale, err [3]float32
}

func (c *scaleSearch) add(scale, err float32) {
	i := c.n
	for i > 0 && err < c.err[i-1] {
		i--
	}
	if i == len(c.scale) {
		return
	}
	c.n = min(c.n+1, len(c.scale))
	copy(c.scale[i+1:c.n], c.scale[i:])
	copy(c.err[i+1:c.n], c.err[i:])
	c.scale[i], c.err[i] = scale, err
}

// search tries scales that put top, the largest weight, near the end of the levels, and ones that put the most important
// weight there, in case top had better be clipped.
func (c *scaleSearch) search(lv *levels, gr *group, top float32) {
	c.try(lv, gr, top/lv.lo)
	c.scan(lv, gr, top, lv.step)
	if v := gr.mostImportant(); abs(v) != abs(top) {
		c.scan(lv, gr, v, 2*lv.step)
	}
}

func (c *scaleSearch) scan(lv *levels, gr *group, x, step float32) {
	var t tries
	for level := lv.from; level < lv.to && x != 0; level += step {
		t.add(-x/level, 0)
		// Where nothing is clipped, the scale's sign makes no difference to whole levels.
		if lv.table != nil || level > lv.hi+0.5 {
			t.add(x/level, 0)
		}
	}
	t.measure(lv, gr)
	for i := range t.n {
		c.add(gr.solveScale(t.fit[i], t.scale[i]))
	}
}

func (c *scaleSearch) try(lv *levels, gr *group, scale float32) {
	f := lv.measure(gr, scale, 0)
	c.add(gr.solveScale(f, scale))
}

// maxRefine ends the alternation of codes and scales, which nearly always stops by itself in fewer rounds.
const maxRefine = 8

// refine alternates codes and scale from each candidate until the error stays.
func (c *scaleSearch) refine(lv *levels, gr *group) {
	found := *c
	c.n = 0
	for i := range found.n {
		scale, err := found.scale[i], found.err[i]
		for range maxRefine {
			f := lv.measure(gr, scale, 0)
			newScale, newErr := gr.solveScale(f, scale)
			if !(newErr < err) {
				break
			}
			scale, err = newScale, newErr
		}
		c.add(scale, err)
	}
}

// largest returns the weight of largest magnitude.
func (gr *group) largest() float32 {
	var v float32
	for _, x := range gr.x {
		if abs(x) > abs(v) {
			v = x
		}
	}
	return v
}

// mostImportant returns the weight that contributes most to Σ wt·x².
func (gr *group) mostImportant() float32 {
	var v, most float32
	for j, x := range gr.x {
		if e := gr.wt[j] * x * x; e > most {
			v, most = x, e
		}
	}
	return v
}
