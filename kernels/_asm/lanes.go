package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// columns writes the column-wise work of GPTQ on lanes of rows.
func columns(g *gen) {
	for _, v := range []isa{avx2, avx512} {
		g.roundLanes(v)
		g.subtractLanes(v)
	}
}

// roundLanes is RoundLanes.
func (g *gen) roundLanes(v isa) {
	g.function("roundLanes"+v.name, "func(q, err, x, scale, minimum *float32, u, lo, hi float32)",
		"rounds a vector of weights.")
	level, zero, x, scale, minimum, t := v.reg(0), v.reg(1), v.reg(2), v.reg(3), v.reg(4), v.reg(5)
	g.zero(v, zero)
	load := func(name string, to reg.Register) { g.VMOVUPS(at(g.gp(name), 0), to) }
	load("x", x)
	load("scale", scale)
	load("minimum", minimum)
	g.VADDPS(minimum, x, level)
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(4), zero, scale, reg.K1)
		g.VDIVPS_Z(scale, level, reg.K1, level)
	} else {
		g.VCMPPS(operand.U8(4), zero, scale, t)
		g.VDIVPS(scale, level, level)
		g.VANDPS(t, level, level)
	}
	// The second source, the first operand here, is what NaN leaves.
	g.VBROADCASTSS(g.param("lo"), t)
	g.VMAXPS(t, level, level)
	g.VBROADCASTSS(g.param("hi"), t)
	g.VMINPS(t, level, level)
	if v.bytes == 64 {
		g.VRNDSCALEPS(operand.U8(8), level, level)
	} else {
		g.VROUNDPS(operand.U8(8), level, level)
	}
	g.VMOVUPS(level, at(g.gp("q"), 0))
	g.VMULPS(level, scale, t)
	g.VSUBPS(minimum, t, t)
	g.VSUBPS(t, x, t)
	g.VBROADCASTSS(g.param("u"), x)
	g.VDIVPS(x, t, t)
	g.VMOVUPS(t, at(g.gp("err"), 0))
	g.VZEROUPPER()
	g.RET()
}

// subtractLanes is SubtractLanes.
func (g *gen) subtractLanes(v isa) {
	g.function("subtractLanes"+v.name, "func(dst, u, x *float32, n int)", "sets dst[j] −= u[j]·x for j < n.")
	dst, u, n := g.gp("dst"), g.gp("u"), g.gp("n")
	x := v.reg(8)
	g.VMOVUPS(at(g.gp("x"), 0), x)
	step := func(name string, count int) {
		g.countdown(name, n, count, func() {
			for i := range count {
				g.VMOVUPS(at(dst, lane*i), v.reg(i))
				if v.bytes == 64 {
					g.VFNMADD231PS_BCST(at(u, 4*i), x, v.reg(i))
				} else {
					g.VBROADCASTSS(at(u, 4*i), v.reg(4+i))
					g.VFNMADD231PS(v.reg(4+i), x, v.reg(i))
				}
				g.VMOVUPS(v.reg(i), at(dst, lane*i))
			}
			g.advance(lane*count, dst)
			g.advance(4*count, u)
		})
	}
	step("four", 4)
	step("one", 1)
	g.VZEROUPPER()
	g.RET()
}
