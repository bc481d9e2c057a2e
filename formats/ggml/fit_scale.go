package ggml

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// One scale per block and no minimum: Q4_0, Q5_0, Q8_0, IQ4_NL.

func fitScale(g *quant.Grid, lv *levels, b *quant.Block, w, importance []float32) {
	var s scratch
	gr := &s.load(g, w, importance)[0]
	b.D, b.DMin, b.Sc[0], b.M[0] = 0, 0, 1, 0
	top := gr.largest()
	if top == 0 {
		return
	}
	if d, ok := exactScale(g, lv, gr, top); ok {
		b.D = d
		return
	}
	var best candidates
	best.search(lv, gr, top)
	b.D = best.refine(lv, gr)
}

// exactScale returns the scale with which the weights are on the grid already, as those of a quantized checkpoint are.
func exactScale(g *quant.Grid, lv *levels, gr *group, top float32) (d float32, ok bool) {
	for c := g.CodeMin; c <= g.CodeMax; c++ {
		d := top / g.Level(int8(c)) // infinite for level 0
		if math.Float32bits(d)&0x1fff == 0 && roundScale(d) == d && lv.measure(gr.x, gr.wt, d).err == 0 {
			return d, true
		}
	}
	return 0, false
}

// candidates keeps the best scales that a search has met, the best first.
type candidates struct {
	n     int
	scale [3]float32
	fit   [3]fit
}

func (c *candidates) add(scale float32, f fit) {
	i := c.n
	for i > 0 && f.err < c.fit[i-1].err {
		i--
	}
	if i == len(c.scale) {
		return
	}
	c.n = min(c.n+1, len(c.scale))
	copy(c.scale[i+1:c.n], c.scale[i:])
	copy(c.fit[i+1:c.n], c.fit[i:])
	c.scale[i], c.fit[i] = scale, f
}

// search adds scales that put top, the largest weight, near the end of the levels.
func (c *candidates) search(lv *levels, gr *group, top float32) {
	lo, hi := -lv.lo, lv.hi
	fine := max(lo/64, 0.125)
	for r := 0.68 * lo; r < 1.16*lo; r += fine {
		c.try(lv, gr, -top/r)
		// Without clipping the scale's sign makes no difference to whole levels.
		if lv.table != nil || r > hi+0.5 {
			c.try(lv, gr, top/r)
		}
	}
	for r := 1.3 * lo; r < 5*lo; r *= 1.25 {
		c.try(lv, gr, -top/r)
		c.try(lv, gr, top/r)
	}
}

func (c *candidates) try(lv *levels, gr *group, scale float32) {
	c.add(scale, lv.measure(gr.x, gr.wt, scale))
}

// refine alternates codes and scale from each candidate and returns the best float16 scale.
func (c *candidates) refine(lv *levels, gr *group) float32 {
	var bestScale float32
	best := lv.measure(gr.x, gr.wt, 0)
	for i := range c.n {
		f := c.fit[i]
		for last := float32(math.Inf(1)); f.ll > 0; {
			d := roundScale(f.lx / f.ll)
			f = lv.measure(gr.x, gr.wt, d)
			if f.err < best.err {
				best, bestScale = f, d
			}
			if f.err >= last {
				break
			}
			last = f.err
		}
	}
	step := stepF16(bestScale)
	for _, d := range [2]float32{roundScale(bestScale - step), roundScale(bestScale + step)} {
		if f := lv.measure(gr.x, gr.wt, d); f.err < best.err {
			best, bestScale = f, d
		}
	}
	return bestScale
}
