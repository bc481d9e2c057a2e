package ggml

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// Super-blocks of groups with a scale and a minimum each: Q2_K, Q4_K, Q5_K.

func fitSuperMin(g *quant.Grid, lv *levels, b *quant.Block, w, importance []float32) {
	var s scratch
	groups := s.load(g, w, importance)
	best := float32(math.Inf(1))
	for mirror := range 2 {
		if mirror == 1 {
			for k := range groups {
				gr := &groups[k]
				for j := range gr.x {
					gr.x[j] = -gr.x[j]
				}
				gr.wx = -gr.wx
			}
		}
		var p [maxGroups]minSearch
		var top, topMin float32
		for k := range groups {
			p[k].search(&groups[k], lv.hi, true)
			top, topMin = max(top, p[k].scale[0]), max(topMin, p[k].minimum[0])
		}
		for _, r := range [...]float32{0.9, 1, 1.1} {
			for _, rm := range [...]float32{0.9, 1, 1.1} {
				d, dmin := roundScale(top/(r*float32(g.ScaleMax))), roundScale(topMin/(rm*float32(g.MinMax)))
				last := float32(math.Inf(1))
				for {
					var sc, m [maxGroups]int8
					var err float32
					var a11, a12, a22, b1, b2 float64
					for k := range groups {
						var f fit
						sc[k], m[k], f = bestScaleMin(g, lv, &groups[k], &p[k], d, dmin)
						err += f.err
						q, mm := float64(sc[k]), float64(m[k])
						a11 += q * q * float64(f.ll)
						a12 -= q * mm * float64(f.l)
						a22 += mm * mm * float64(groups[k].w)
						b1 += q * float64(f.lx)
						b2 -= mm * float64(groups[k].wx)
					}
					if err < best {
						best = err
						b.D, b.DMin = d, dmin
						if mirror == 1 {
							b.D, b.DMin = -d, -dmin
						}
						copy(b.Sc, sc[:])
						copy(b.M, m[:])
					}
					if err >= last {
						break
					}
					last = err
					det := a11*a22 - a12*a12
					if det > 1e-9*a11*a22 {
						d, dmin = roundScale(float32((b1*a22-b2*a12)/det)), roundScale(float32((b2*a11-b1*a12)/det))
					} else if a11 > 0 {
						d = roundScale(float32(b1 / a11))
					} else if a22 > 0 {
						dmin = roundScale(float32(b2 / a22))
					}
				}
			}
		}
	}
}

func bestScaleMin(g *quant.Grid, lv *levels, gr *group, p *minSearch, d, dmin float32) (sc, m int8, f fit) {
	f.err = float32(math.Inf(1))
	invD, invMin := inverse(d), inverse(dmin)
	try := func(q, mq int) {
		if q < 0 || q > g.ScaleMax || mq < 0 || mq > g.MinMax {
			return
		}
		if t := measureMin(gr.x, gr.wt, d*float32(q), dmin*float32(mq), lv.hi); t.err < f.err {
			sc, m, f = int8(q), int8(mq), t
		}
	}
	try(0, 0)
	for i := range min(p.n, 1) {
		mid := int(p.scale[i] * invD)
		for q := max(mid-window+1, 0); q <= min(mid+window, g.ScaleMax); q++ {
			scale := d * float32(q)
			t := measureMin(gr.x, gr.wt, scale, p.minimum[i], lv.hi)
			mq := (scale*t.l - gr.wx) / gr.w * invMin
			mq = min(max(mq+0.5, 0), float32(g.MinMax))
			try(q, int(mq))
		}
	}
	q, mq := int(sc), int(m)
	try(q, mq-1)
	try(q, mq+1)
	return sc, m, f
}
