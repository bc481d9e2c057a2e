package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// levelGroup is the longest group that kernels.LevelFormat knows: longer ones show their scale several times.
const levelGroup = 32

func init() {
	for _, t := range Types {
		switch g := t.Grid.(type) {
		case *quant.Affine:
			t.Levels = &kernels.LevelFormat{Group: min(g.Group, levelGroup), Minimums: g.HasMinimum(), Bits: levelBits(g), Unpack: t.unpackLevels}
		case *quant.Lattice:
			t.Levels = &kernels.LevelFormat{Group: g.Group, Bits: 8, Unpack: t.unpackWords}
			t.Unpack = t.unpackBlocks
			t.Words = g.Codebook.Table()
		}
	}
}

// levelBits is kernels.LevelFormat's Bits.
func levelBits(g *quant.Affine) int {
	for _, bits := range []int{4, 6} {
		lo, hi := 0, 1<<bits-1
		if !g.HasMinimum() {
			lo, hi = -1<<(bits-1), 1<<(bits-1)-1
		}
		fits := true
		for q := int(g.CodeMin); q <= int(g.CodeMax); q++ {
			level := int(g.Level(int8(q)))
			fits = fits && lo <= level && level <= hi
		}
		if fits {
			return bits
		}
	}
	return 8
}

// unpackBlocks is the plain decoder of types whose blocks are read by Parse.
func (t *Type) unpackBlocks(dst []float32, src []byte) {
	var a blockRoom
	b := a.block(t.Grid)
	for ; len(dst) > 0; dst, src = dst[t.BlockLen:], src[t.BlockBytes:] {
		t.Parse(&b, src[:t.BlockBytes])
		t.Grid.Decode(dst[:t.BlockLen], &b)
	}
}

// unpackWords is the plain decoder of words to levels: a lattice's codes are levels.
func (t *Type) unpackWords(level []int8, scale, minimum []float32, src []byte) {
	g := t.Grid.(*quant.Lattice)
	var a blockRoom
	b := a.block(g)
	for ; len(level) > 0; level, src = level[g.Block:], src[t.BlockBytes:] {
		b.Codes = level[:g.Block]
		t.Parse(&b, src[:t.BlockBytes])
		for k := range g.Groups() {
			scale[k], minimum[k] = g.Scale(&b, k), 0
		}
		scale, minimum = scale[g.Groups():], minimum[g.Groups():]
	}
}

// blockRoom is room for a block.
type blockRoom struct {
	sc, m [maxGroups]int8
	codes [maxBlock]int8
}

func (a *blockRoom) block(g quant.Grid) quant.Block {
	s := g.Shape()
	n := s.Groups()
	return quant.Block{Sc: a.sc[:n], M: a.m[:n], Codes: a.codes[:s.Block]}
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
