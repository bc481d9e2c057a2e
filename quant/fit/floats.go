package fit

import (
	"slices"

	"github.com/llmq/llmq/quant"
)

// Scales that are floating-point numbers of eight bits: MXFP4, NVFP4. There are few near the one with which a group's largest
// weight just fits, so that all are measured.

// Of scales relative to that one, these are tried. With larger ones than floatRoom, the second level being ⅔ of the
// outermost, two levels would be free; smaller ones than 1/floatReach clip, and lose more than they gain.
const (
	floatRoom  = 1.5
	floatReach = 2.5
)

func fitFloats(g *quant.Affine, lv *levels, bs []quant.Block, w, importance []float32) {
	b := &bs[0]
	var s scratch
	s.load(w, importance)
	b.D, b.DMin = 0, 0
	for k := range b.Sc {
		gr := s.group(k*g.Group, g.Group)
		values := g.Scales.Floats[g.Scales.Min : g.Scales.Max+1]
		wanted := abs(gr.largest()) / lv.hi
		// Downwards: of scales whose errors are too small to be told apart the larger is right.
		at, _ := slices.BinarySearch(values, wanted*floatRoom)
		at = min(at, len(values)-1)
		best := lv.measure(&gr, values[at], 0).Err
		for i := at - 1; i >= 0 && values[i] >= wanted/floatReach; i-- {
			if f := lv.measure(&gr, values[i], 0); f.Err < best {
				best, at = f.Err, i
			}
		}
		b.Sc[k], b.M[k] = quant.FloatCode(byte(g.Scales.Min+at)), 0
	}
}
