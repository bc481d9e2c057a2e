package quant

import (
	"math"

	"github.com/llmq/llmq/kernels/search"
)

// RoundCodes sets b's codes to those nearest to w, one block.
func (b *Block) RoundCodes(g *Grid, w []float32) {
	for k := range g.Groups() {
		scale, minimum := b.Scale(k)
		x, codes := w[k*g.Group:(k+1)*g.Group], b.Codes[k*g.Group:(k+1)*g.Group]
		if g.Codebook == nil && scale != 0 {
			search.NearestLevels(codes, x, scale, minimum, int8(g.CodeMin), int8(g.CodeMax))
			continue
		}
		for j, v := range x {
			codes[j] = g.Nearest(v, scale, minimum)
		}
	}
}

// Nearest returns the code whose value scale·level(q) − minimum is nearest to x. With a zero scale every code has the
// same value, and the one of level zero is returned.
func (g *Grid) Nearest(x, scale, minimum float32) int8 {
	if scale == 0 {
		return g.zeroCode()
	}
	return g.NearestLevel((x + minimum) / scale)
}

// NearestLevel returns the code whose level is nearest to v.
func (g *Grid) NearestLevel(v float32) int8 {
	if g.Codebook == nil {
		// Clamp before converting: an integer conversion of a huge value is not defined.
		v = min(max(v, float32(g.CodeMin)), float32(g.CodeMax))
		return int8(math.RoundToEven(float64(v)))
	}
	lo, hi := 0, len(g.Codebook)-1
	for lo < hi { // the first level whose midpoint with the next is at or above v
		mid := (lo + hi) / 2
		if v <= (g.Codebook[mid]+g.Codebook[mid+1])/2 {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return int8(lo + g.CodeMin)
}

func (g *Grid) zeroCode() int8 {
	if g.Codebook != nil {
		return g.NearestLevel(0)
	}
	return int8(min(max(0, g.CodeMin), g.CodeMax))
}
