package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// measure writes the measurement of scales: a lane is a candidate, weights pass by one after the other. No multiplication
// is fused with an addition and sums go as in the plain version, so that all tiers choose the same scales.
func measure(g *gen) {
	magic := g.StaticGlobal("roundMagic")
	g.DataAttributes(rodata)
	g.AddDatum(0, operand.U32(0x4b400000)) // 1.5·2²³
	one := g.StaticGlobal("one")
	g.DataAttributes(rodata)
	g.AddDatum(0, operand.U32(0x3f800000))
	for _, v := range []isa{avx2, avx512} {
		g.measure(v, magic, one, false)
		g.measure(v, magic, one, true)
	}
}

// measure measures candidates on one group, or, if each, lane by lane on groups of their own.
func (g *gen) measure(v isa, magic, one operand.Mem, each bool) {
	name, what, pitch := "measure", "measures a vector of candidates on n > 0 weights, an even number.", 4
	if each {
		name, pitch = "measureEach", 64
		what = "measures each lane's candidate on the n > 0 weights of its lane, an even number; lanes are 16 wide."
	}
	g.function(name+v.name, "func(sums, candidates, x, wt *float32, n int, lo, hi int32)", what,
		"At candidates are 16 scales and 16 minima; at sums go 16 errors and 16 sums of each kind.")
	sums, candidates := g.gp("sums"), g.gp("candidates")
	x, wt, n := g.gp("x"), g.gp("wt"), g.gp("n")
	clamp := g.AllocLocal(128) // lo and hi in every lane
	t, q := v.reg(9), v.reg(14)
	for i, name := range []string{"lo", "hi"} {
		r := g.Load(g.Param(name), g.GP32())
		g.VMOVD(r, t.AsX())
		g.VPBROADCASTD(t.AsX(), t)
		g.VMOVUPS(t, clamp.Offset(64*i))
	}
	scale, minimum, inv, rounding := v.reg(8), at(candidates, 64), v.reg(10), v.reg(11)
	g.VMOVUPS(at(candidates, 0), scale)
	g.VBROADCASTSS(one, inv)
	g.Comment("1/scale, 0 for 0")
	g.zero(v, t)
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(4), t, scale, reg.K1)
		g.VDIVPS_Z(scale, inv, reg.K1, inv)
	} else {
		g.VCMPPS(operand.U8(4), t, scale, t)
		g.VDIVPS(scale, inv, inv)
		g.VANDPS(t, inv, inv)
	}
	g.VBROADCASTSS(magic, rounding)
	for i := range 8 {
		g.zero(v, v.reg(i))
	}
	xj, wj, d := v.reg(12), v.reg(13), v.reg(15)
	g.Label("weights")
	for i := range 2 {
		sum := func(k int) reg.Register { return v.reg(2*k + i) }
		if each {
			g.VMOVUPS(at(x, pitch*i), xj)
			g.VMOVUPS(at(wt, pitch*i), wj)
		} else {
			g.VBROADCASTSS(at(x, pitch*i), xj)
			g.VBROADCASTSS(at(wt, pitch*i), wj)
		}
		g.VADDPS(minimum, xj, q)
		g.VMULPS(inv, q, q)
		g.VADDPS(rounding, q, q)
		g.VPMAXSD(clamp, q, q)
		g.VPMINSD(clamp.Offset(64), q, q)
		g.VSUBPS(rounding, q, q)
		g.VMULPS(scale, q, d)
		g.VSUBPS(minimum, d, d)
		g.VSUBPS(d, xj, d)
		g.VMULPS(d, wj, t)
		g.VMULPS(d, t, t)
		g.VADDPS(t, sum(0), sum(0))
		g.VMULPS(q, wj, wj)
		g.VADDPS(wj, sum(1), sum(1))
		g.VMULPS(q, wj, t)
		g.VADDPS(t, sum(2), sum(2))
		g.VMULPS(xj, wj, t)
		g.VADDPS(t, sum(3), sum(3))
	}
	g.advance(2*pitch, x, wt)
	g.SUBQ(operand.I32(2), n)
	g.JG(operand.LabelRef("weights"))
	for k := range 4 {
		g.VADDPS(v.reg(2*k+1), v.reg(2*k), v.reg(2*k))
		g.VMOVUPS(v.reg(2*k), at(sums, 64*k))
	}
	g.VZEROUPPER()
	g.RET()
}
