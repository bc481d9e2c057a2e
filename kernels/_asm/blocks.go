package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// blocks writes the rounding of blocks with one scale to their bytes.
func blocks(g *gen) {
	for _, v := range []isa{avx2, avx512} {
		g.roundBlocks(v, "Q4_0", -8, 7, 18)
		g.roundBlocks(v, "Q8_0", -128, 127, 34)
	}
}

// roundBlocks is RoundQ4_0 or RoundQ8_0.
func (g *gen) roundBlocks(v isa, name string, from, to int32, blockBytes int) {
	g.function("round"+name+v.name, "func(dst *byte, x, scale *float32, n int)", "rounds n > 0 blocks.")
	dst, x, scales, n := g.gp("dst"), g.gp("x"), g.gp("scale"), g.gp("n")
	zero, lo, hi, scale, mask, offset := v.reg(8), v.reg(9), v.reg(10), v.reg(11), v.reg(12), v.reg(13)
	g.zero(v, zero)
	level := g.GP32()
	set := func(r reg.VecPhysical, value int32) {
		g.MOVL(operand.I32(value), level)
		g.VMOVD(level, r.AsX())
		g.VPBROADCASTD(r.AsX(), r)
	}
	set(lo, from)
	set(hi, to)
	g.VCVTDQ2PS(lo, lo)
	g.VCVTDQ2PS(hi, hi)
	nibbles := name == "Q4_0"
	if nibbles {
		set(offset, -from)
	}
	g.Label("block")
	g.VBROADCASTSS(at(scales, 0), scale)
	g.VCVTPS2PH(operand.U8(0), scale.AsX(), v.reg(0).AsX())
	g.VPEXTRW(operand.U8(0), v.reg(0).AsX(), at(dst, 0))
	const notEqual = 4
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(notEqual), zero, scale, reg.K1)
	} else {
		g.VCMPPS(operand.U8(notEqual), zero, scale, mask)
	}
	vectors := 128 / v.bytes
	for i := range vectors {
		q := v.reg(i)
		g.VMOVUPS(at(x, i*v.bytes), q)
		if v.bytes == 64 {
			g.VDIVPS_Z(scale, q, reg.K1, q)
		} else {
			g.VDIVPS(scale, q, q)
			g.VANDPS(mask, q, q)
		}
		// The second source, the first operand here, is what NaN leaves.
		g.VMAXPS(lo, q, q)
		g.VMINPS(hi, q, q)
		g.VCVTPS2DQ(q, q)
	}
	if nibbles { // the second half's codes above the first's
		for i := range vectors / 2 {
			a, b := v.reg(i), v.reg(i+vectors/2)
			g.VPADDD(offset, a, a)
			g.VPADDD(offset, b, b)
			g.VPSLLD(operand.U8(4), b, b)
			if v.bytes == 64 {
				g.VPORD(b, a, a)
			} else {
				g.VPOR(b, a, a)
			}
		}
		vectors /= 2
	}
	for i := 0; i < vectors; i += 64 / v.bytes {
		a := v.reg(i)
		to := at(dst, 2+i*v.lanes())
		if v.bytes == 64 {
			g.VPMOVDB(a, to)
			continue
		}
		b := v.reg(i + 1)
		g.VPACKSSDW(b, a, a) // in each half: four of the first, four of the second
		g.VPERMQ(operand.U8(0xd8), a, a)
		g.VEXTRACTI128(operand.U8(1), a, b.AsX())
		if nibbles {
			g.VPACKUSWB(b.AsX(), a.AsX(), a.AsX())
		} else {
			g.VPACKSSWB(b.AsX(), a.AsX(), a.AsX())
		}
		g.VMOVDQU(a.AsX(), to)
	}
	g.advance(4, scales)
	g.advance(128, x)
	g.advance(blockBytes, dst)
	g.DECQ(n)
	g.JG(operand.LabelRef("block"))
	g.VZEROUPPER()
	g.RET()
}
