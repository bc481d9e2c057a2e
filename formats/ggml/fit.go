package ggml

import (
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// newGrid returns g with its Fit.
func newGrid(g quant.Grid) *quant.Grid {
	grid := &g
	grid.Fit = func(b *quant.Block, w, importance []float32) { fitRange(grid, b, w) }
	return grid
}

// fitRange chooses scales that cover every group's range.
func fitRange(g *quant.Grid, b *quant.Block, w []float32) {
	var scale, minimum [maxGroups]float32
	var maxScale, maxMin float32
	for k := range g.Groups() {
		scale[k], minimum[k] = groupRange(g, w[k*g.Group:(k+1)*g.Group])
		maxScale, maxMin = max(maxScale, scale[k]), max(maxMin, abs(minimum[k]))
	}
	b.D, b.DMin = roundScale(maxScale/float32(g.ScaleMax)), roundScale(maxMin/float32(max(g.MinMax, 1)))
	for k := range g.Groups() {
		b.Sc[k], b.M[k] = nearestInt(scale[k], b.D, g.ScaleMin, g.ScaleMax), nearestInt(minimum[k], b.DMin, 0, g.MinMax)
	}
	if g.MinMax == 1 {
		b.DMin = roundScale(minimum[0])
		b.M[0] = 1
	}
	if g.ScaleMin == g.ScaleMax {
		b.Sc[0] = 1
	}
}

func groupRange(g *quant.Grid, w []float32) (scale, minimum float32) {
	lo, hi := w[0], w[0]
	for _, v := range w {
		lo, hi = min(lo, v), max(hi, v)
	}
	top, bottom := g.Level(int8(g.CodeMax)), g.Level(int8(g.CodeMin))
	if g.MinMax == 0 {
		return max(hi/top, lo/bottom), 0
	}
	if g.MinMax > 1 {
		lo = min(lo, 0)
	}
	return (max(hi, lo) - lo) / top, -lo
}

func nearestInt(v, unit float32, lo, hi int) int8 {
	if unit == 0 {
		return int8(min(max(0, lo), hi))
	}
	return int8(min(max(v/unit+0.5, float32(lo)), float32(hi)))
}

func abs(v float32) float32 { return max(v, -v) }

// roundScale returns v rounded to float16, saturating.
func roundScale(v float32) float32 { return tensor.RoundF16(min(max(v, -maxF16), maxF16)) }
