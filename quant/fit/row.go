package fit

import (
	"math"

	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
)

// One scale for a whole row, longer than any block of ggml's: a channel's of eight bits. The largest weight says nearly all of
// what the scale has to be.

// rowShares are the shares of the largest weight that are tried as the end of the codes. On gopher-4m's rows of 256 and 768
// columns the best lies between 0.8 and 1.
var rowShares = [...]float32{1, 0.98, 0.96, 0.94, 0.92, 0.9, 0.87, 0.84, 0.8, 0.75}

func fitRow(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	b := &bs[0]
	b.D, b.DMin, b.Sc[0], b.M[0] = 0, 0, 1, 0
	x, wt := make([]float32, len(w)+len(w)%2), make([]float32, len(w)+len(w)%2) // MeasureLevels takes pairs
	copy(x, w)
	for j := range w {
		wt[j] = 1
	}
	gr := group{x: x, wt: wt}
	var most float32
	for _, v := range importance {
		most = max(most, v)
	}
	if most > 0 {
		for j, v := range importance {
			wt[j] = max(v, 0) / most
		}
	}
	top := abs(gr.largest())
	best := float32(math.Inf(1))
	for _, share := range rowShares {
		d := roundScaleOf(g, min(top, maxWeight)*share*lv.inverseHi)
		if f := search.MeasureLevels(x, wt, d, 0, int32(lv.lo), int32(lv.hi)); f.Err < best {
			best, b.D = f.Err, d
		}
	}
}
