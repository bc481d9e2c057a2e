package main

import (
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// half writes the conversions of float32 to 16 bits. They are bound by memory, so AVX2 serves all tiers.
func half(g *gen) {
	dwords := func(name string, v uint32) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		for i := range 8 {
			g.AddDatum(4*i, operand.U32(v))
		}
		return m
	}
	one, below, quiet := dwords("one", 1), dwords("belowHalf", 0x7fff), dwords("quiet", 0x7fc00000)
	y := avx2.reg
	x := func(i int) reg.Register { return y(i).AsX() }
	convert := func(name string, doc string, body func(r int)) {
		g.function(name, "func(dst *byte, src *float32, n int, limit float32)",
			"sets dst to src clamped to ±limit and rounded to the nearest "+doc+", ties to even.", "n is a multiple of 16.")
		dst, src, n := g.gp("dst"), g.gp("src"), g.gp("n")
		sign := g.GP32()
		high, low := y(14), y(15)
		g.VBROADCASTSS(g.param("limit"), high)
		g.MOVL(operand.U32(math.Float32bits(float32(math.Copysign(0, -1)))), sign)
		g.VMOVD(sign, x(15))
		g.VPBROADCASTD(x(15), low)
		g.VPXOR(high, low, low)
		g.countdown("block", n, 16, func() {
			for i := range 2 {
				g.VMOVUPS(at(src, 32*i), y(i))
				// The second source is what NaN leaves.
				g.VMINPS(y(i), high, y(i))
				g.VMAXPS(y(i), low, y(i))
				body(i)
			}
			if name == "encodeBF16AVX2" {
				g.VPACKUSDW(y(1), y(0), y(0))
				g.VPERMQ(operand.U8(0xd8), y(0), y(0))
				g.VMOVDQU(y(0), at(dst, 0))
			} else {
				g.VMOVDQU(x(0), at(dst, 0))
				g.VMOVDQU(x(1), at(dst, 16))
			}
			g.ADDQ(operand.I32(64), src)
			g.ADDQ(operand.I32(32), dst)
		})
		g.VZEROUPPER()
		g.RET()
	}
	convert("encodeF16AVX2", "binary16", func(r int) { g.VCVTPS2PH(operand.U8(0), y(r), x(r)) })
	convert("encodeBF16AVX2", "bfloat16", func(r int) {
		g.VCMPPS(operand.U8(3), y(r), y(r), y(4)) // NaN
		g.VPSRLD(operand.U8(16), y(r), y(3))
		g.VPAND(one, y(3), y(3))
		g.VPADDD(below, y(3), y(3))
		g.VPADDD(y(3), y(r), y(r))
		g.VMOVDQU(quiet, y(3))
		g.VBLENDVPS(y(4), y(3), y(r), y(r))
		g.VPSRLD(operand.U8(16), y(r), y(r))
	})
}
