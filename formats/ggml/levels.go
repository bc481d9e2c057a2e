package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// levelGroup is the longest group that kernels.LevelFormat knows: longer ones show their scale several times.
const levelGroup = 32

func init() {
	for _, t := range Types {
		if g, ok := t.Grid.(*quant.Affine); ok {
			t.Levels = &kernels.LevelFormat{Group: min(g.Group, levelGroup), Minimums: g.HasMinimum(), Unpack: t.unpackLevels}
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
			sc, m := g.Scale(&b, k)
			for i := 0; i < g.Group; i += t.Levels.Group {
				scale[0], minimum[0] = sc, m
				scale, minimum = scale[1:], minimum[1:]
			}
		}
		for j, q := range b.Codes {
			b.Codes[j] = int8(g.Level(q))
		}
	}
}
