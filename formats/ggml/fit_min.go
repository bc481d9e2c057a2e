package ggml

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// One scale and one minimum per block: Q4_1, Q5_1.

func fitMin(g *quant.Grid, lv *levels, b *quant.Block, w, importance []float32) {
	var s scratch
	gr := &s.load(g, w, importance)[0]
	var p minSearch
	p.search(gr, lv.hi, false)
	b.Sc[0], b.M[0] = 1, 1
	b.D, b.DMin = roundScale(p.scale[0]), roundScale(p.minimum[0])
	best := float32(math.Inf(1))
	for i := range p.n {
		d, dmin := roundScale(p.scale[i]), roundScale(p.minimum[i])
		last := float32(math.Inf(1))
		for {
			f := measureMin(gr.x, gr.wt, d, dmin, lv.hi)
			if f.err < best {
				best, b.D, b.DMin = f.err, d, dmin
			}
			if f.err >= last {
				break
			}
			last = f.err
			scale, minimum := gr.solve(f, false)
			d, dmin = roundScale(scale), roundScale(minimum)
		}
	}
}

// solve returns the scale and minimum that suit the levels of f best: the least-squares line through (l, x). With
// nonNegative the minimum is at least 0.
func (gr *group) solve(f fit, nonNegative bool) (scale, minimum float32) {
	det := float64(gr.w)*float64(f.ll) - float64(f.l)*float64(f.l)
	if det <= 0 {
		return 0, 0
	}
	scale = float32((float64(gr.w)*float64(f.lx) - float64(f.l)*float64(gr.wx)) / det)
	minimum = float32((float64(f.l)*float64(f.lx) - float64(f.ll)*float64(gr.wx)) / det)
	if nonNegative && minimum < 0 {
		return f.lx / f.ll, 0
	}
	return scale, minimum
}

// minSearch keeps the best pairs of scale and minimum that it has met, the best first.
type minSearch struct {
	n              int
	scale, minimum [3]float32
	err            [3]float32
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

// search starts from ranges that clip a little at either end.
func (p *minSearch) search(gr *group, levels float32, nonNegative bool) {
	lo, hi := gr.x[0], gr.x[0]
	for _, v := range gr.x {
		lo, hi = min(lo, v), max(hi, v)
	}
	if nonNegative {
		lo = min(lo, 0)
	}
	if hi <= lo {
		p.add(0, -lo, measureMin(gr.x, gr.wt, 0, -lo, levels).err)
		return
	}
	step := (hi - lo) / levels
	for a := float32(-0.4); a < 1.3; a += 0.4 {
		for b := float32(-0.4); b < 1.3; b += 0.4 {
			p.try(gr, lo+a*step, hi-b*step, levels, nonNegative)
		}
	}
	// Where unimportant outliers stretch the range: the weighted mean and deviation.
	mean := gr.wx / gr.w
	var dev float32
	for j, v := range gr.x {
		dev += gr.wt[j] * (v - mean) * (v - mean)
	}
	dev = float32(math.Sqrt(float64(dev / gr.w)))
	for k := float32(1); k < 3; k += 0.5 {
		p.try(gr, mean-k*dev, mean+k*dev, levels, nonNegative)
	}
}

func (p *minSearch) try(gr *group, lo, hi, levels float32, nonNegative bool) {
	if nonNegative {
		lo = min(lo, 0)
	}
	if hi <= lo {
		return
	}
	scale, minimum := (hi-lo)/levels, -lo
	for range 2 {
		f := measureMin(gr.x, gr.wt, scale, minimum, levels)
		p.add(scale, minimum, f.err)
		scale, minimum = gr.solve(f, nonNegative)
		if scale <= 0 {
			return
		}
	}
	p.add(scale, minimum, measureMin(gr.x, gr.wt, scale, minimum, levels).err)
}
