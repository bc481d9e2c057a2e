package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

func init() {
	for _, t := range Types {
		if g, ok := t.Grid.(*quant.Affine); ok {
			t.Levels = &kernels.LevelFormat{Group: g.Group, Minimums: g.HasMinimum(), Unpack: t.unpackLevels}
		}
	}
}

// unpackLevels is the plain decoder to levels: whole blocks, and a scale and a minimum for each group of them.
func (t *Type) unpackLevels(level []int8, scale, minimum []float32, src []byte) {
	g := t.Grid.(*quant.Affine)
	n := g.Groups()
	var sc, m [maxGroups]int8
	b := quant.Block{Sc: sc[:n], M: m[:n]}
	for ; len(level) > 0; level, src = level[g.Block:], src[t.BlockBytes:] {
		b.Codes = level[:g.Block]
		t.Parse(&b, src[:t.BlockBytes])
		for k := range n {
			scale[k], minimum[k] = g.Scale(&b, k)
		}
		scale, minimum = scale[n:], minimum[n:]
		for j, q := range b.Codes {
			b.Codes[j] = int8(g.Level(q))
		}
	}
}
