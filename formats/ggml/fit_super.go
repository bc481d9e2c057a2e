package ggml

import (
	"math"

	"github.com/llmq/llmq/quant"
)

// Super-blocks of groups with a scale each and no minimum: Q3_K, Q6_K, IQ4_XS.

func fitSuper(g *quant.Grid, lv *levels, b *quant.Block, w, importance []float32) {
	var s scratch
	groups := s.load(g, w, importance)
	var best [maxGroups]candidates
	var top float32
	for k := range groups {
		gr := &groups[k]
		if v := gr.largest(); v != 0 {
			best[k].search(lv, gr, v)
			top = max(top, abs(best[k].scale[0]))
		}
	}
	b.D, b.DMin = 0, 0
	clear(b.Sc)
	clear(b.M)
	if top == 0 {
		return
	}
	total := float32(math.Inf(1))
	for _, r := range [...]float32{0.85, 0.9, 0.95, 1, 1.05} {
		for sign := float32(-1); sign <= 1; sign += 2 {
			d := roundScale(sign * top / (r * float32(-g.ScaleMin)))
			last := float32(math.Inf(1))
			for {
				var sc [maxGroups]int8
				var err, num, den float32
				for k := range groups {
					q, f := bestScale(g, lv, &groups[k], &best[k], d)
					sc[k] = q
					err += f.err
					num += float32(q) * f.lx
					den += float32(q) * float32(q) * f.ll
				}
				if err < total {
					total = err
					b.D = d
					copy(b.Sc, sc[:])
				}
				if err >= last || den <= 0 {
					break
				}
				last = err
				d = roundScale(num / den)
			}
		}
	}
}

const window = 2

// bestScale returns the multiple of d that suits the group best.
func bestScale(g *quant.Grid, lv *levels, gr *group, c *candidates, d float32) (sc int8, f fit) {
	f = lv.measure(gr.x, gr.wt, 0)
	if d == 0 {
		return 0, f
	}
	var seen [256]bool
	for i := range c.n {
		mid := int(math.Floor(float64(c.scale[i] / d)))
		for q := max(mid-window+1, g.ScaleMin); q <= min(mid+window, g.ScaleMax); q++ {
			if seen[q&255] {
				continue
			}
			seen[q&255] = true
			if t := lv.measure(gr.x, gr.wt, d*float32(q)); t.err < f.err {
				sc, f = int8(q), t
			}
		}
	}
	return sc, f
}
