package main

import (
	"slices"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// levelsOutput is where unpackers store levels and scales.
type levelsOutput struct {
	scale, minimum reg.Register
	offset, signs  operand.Mem
}

// levels writes decoders to levels and scales, in AVX2 alone: what they write is in bytes. Those of words gather in AVX-512.
func levels(g *gen) {
	c, words := g.constants(), g.wordConstants()
	offset := g.bytes32("offset128", func(int) byte { return 128 })
	signs := g.bytes32("signs", func(i int) byte { return []byte{0, 0, 0, 128}[i%4] })
	for _, t := range append(slices.Clone(blockTypes), wordTypes...) {
		if t.bytes == 2*t.weights {
			continue // floating-point
		}
		ofWords := slices.ContainsFunc(wordTypes, func(w blockType) bool { return w.name == t.name })
		parameter, v := "", avx2
		if ofWords {
			parameter, v = ", table *byte", avx512
		}
		g.function("levels"+t.name, "func(level *byte, scale, minimum *float32, src *byte, n int"+parameter+")",
			"decodes n > 0 blocks into levels, with 128 added if the type has no minimum, and for each group its scale and its",
			"minimum, if the type has one: a weight is scale·level − minimum.")
		u := &unpacker{gen: g, constants: c, isa: v, words: words, dst: g.gp("level"), src: g.gp("src"),
			levels: &levelsOutput{g.gp("scale"), g.gp("minimum"), offset, signs}}
		n := g.gp("n")
		if ofWords {
			u.levelsOf = g.gp("table")
		}
		if t.weights > 32 {
			u.scales = g.AllocLocal(128)
		}
		g.Label("block")
		t.block(u)
		g.ADDQ(operand.I32(int32(t.bytes)), u.src)
		g.ADDQ(operand.I32(int32(t.weights)), u.dst)
		group := 32
		switch t.name {
		case "Q2_K", "Q3_K", "Q6_K", "NVFP4", "IQ1_M", "IQ2_XS", "IQ2_S":
			group = 16
		}
		g.ADDQ(operand.I32(int32(4*t.weights/group)), u.levels.scale)
		g.ADDQ(operand.I32(int32(4*t.weights/group)), u.levels.minimum)
		g.DECQ(n)
		g.JNZ(operand.LabelRef("block"))
		g.VZEROUPPER()
		g.RET()
	}
}

// putLevels is emit for levels.
func (u *unpacker) putLevels(position, lo, hi int, slo, shi scaled) {
	minimums := slo.minus >= 0 || slo.plus >= 0
	for h, codes := range []int{lo, hi} {
		if !minimums {
			u.VPXOR(u.levels.offset, u.x(codes), u.x(codes))
		}
		u.VMOVDQU(u.x(codes), at(u.dst, position+16*h))
	}
	groups, size := []scaled{slo}, 32
	if shi != slo {
		groups, size = []scaled{slo, shi}, 16
	}
	for h, s := range groups {
		i := 4 * (position/size + h)
		u.VMOVSS(u.x(s.scale), at(u.levels.scale, i))
		switch {
		case s.minus >= 0:
			u.VMOVSS(u.x(s.minus), at(u.levels.minimum, i))
		case s.plus >= 0:
			u.VXORPS(u.levels.signs, u.x(s.plus), u.x(0))
			u.VMOVSS(u.x(0), at(u.levels.minimum, i))
		}
	}
}
