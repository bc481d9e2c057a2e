package main

import (
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// moves writes search.Moves.Move: four groups at a time, as its sums are float64. Each operation is the plain version's, in its order.
func moves(g *gen) {
	v := avx2
	constant := func(name string, bits uint64) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		for i := range 4 {
			g.AddDatum(8*i, operand.U64(bits))
		}
		return m
	}
	magnitude := constant("magnitude64", 1<<63-1)
	leastGain := constant("leastGain", math.Float64bits(-1e-9))
	minusTwo := constant("minusTwo", math.Float64bits(-2))
	one := constant("one64", math.Float64bits(1))
	g.function("movesAVX2", "func(moves *float32, c, lo, hi, most float64) (moved uint16)", "moves 16 groups.")
	const (
		notEqual, ordered = 4, 7
		down              = 9
	)
	// In every lane, or of four groups.
	locals := g.AllocLocal(9 * 32)
	local := func(i int) operand.Mem { return locals.Offset(32 * i) }
	c, lo, hi, most := local(0), local(1), local(2), local(3)
	stepMinimum, hasMinimum, valid, lower, near := local(4), local(5), local(6), local(7), local(8)
	for i, name := range []string{"c", "lo", "hi", "most"} {
		g.VBROADCASTSD(g.param(name), v.reg(0))
		g.VMOVUPD(v.reg(0), local(i))
	}
	p, q, a, b, step := v.reg(0), v.reg(1), v.reg(2), v.reg(3), v.reg(4)
	t := v.reg(5)
	scale, minimum := v.reg(6), v.reg(7)
	best, bestScale, bestMinimum := v.reg(8), v.reg(9), v.reg(10)
	n, x, m, y, change := v.reg(11), v.reg(12), v.reg(13), v.reg(14), v.reg(15)
	s := g.gp("moves")
	moved, some, left := g.GP32(), g.GP32(), g.GP64()
	field := func(i int, to reg.Register) { g.VCVTPS2PD(at(s, lane*i), to) }
	g.XORL(moved, moved)
	g.MOVQ(operand.U32(4), left)
	g.Label("four")
	field(0, p)
	field(1, q)
	field(2, a)
	field(3, b)
	field(4, step)
	field(5, t)
	field(6, scale)
	field(7, minimum)
	g.VMOVUPD(t, stepMinimum)
	g.zero(v, y)
	g.VSUBPD(q, y, q)
	g.VSUBPD(b, y, b)
	g.VCMPPD(operand.U8(notEqual), y, t, t)
	g.VMOVUPD(t, hasMinimum)
	g.Comment("Which scale is best?")
	g.VDIVPD(a, p, x)
	g.VMULPD(c, a, change)
	g.VMULPD(b, b, n)
	g.VSUBPD(n, change, change)
	g.VMULPD(c, p, n)
	g.VMULPD(b, q, m)
	g.VSUBPD(m, n, n)
	g.VDIVPD(change, n, n)
	const above = 0x1e
	g.VCMPPD(operand.U8(above), y, change, change)
	g.VANDPD(t, change, change)
	g.VBLENDVPD(change, n, x, x)
	g.VCMPPD(operand.U8(ordered), x, x, t)
	g.VCMPPD(operand.U8(notEqual), y, step, n)
	g.VANDPD(n, t, t)
	g.VMOVUPD(t, valid)
	g.VDIVPD(step, x, x)
	g.VADDPD(x, scale, x)
	g.VROUNDPD(operand.U8(down), x, x)
	g.VMOVUPD(x, lower)
	g.VANDPD(magnitude, a, best)
	g.VMULPD(leastGain, best, best)
	g.VMOVAPD(scale, bestScale)
	g.VMOVAPD(minimum, bestMinimum)
	for i := range 3 {
		switch i {
		case 0:
			g.VMOVUPD(lower, n)
		case 1:
			g.VMOVUPD(lower, n)
			g.VADDPD(one, n, n)
		default:
			g.VMOVAPD(scale, n)
		}
		// The second source, the first operand here, is what NaN leaves.
		g.VMOVUPD(lo, t)
		g.VMAXPD(n, t, n)
		g.VMOVUPD(hi, t)
		g.VMINPD(n, t, n)
		g.VSUBPD(scale, n, x)
		g.VMULPD(step, x, x)
		g.VMULPD(b, x, m)
		g.VSUBPD(m, q, m)
		g.VDIVPD(c, m, m)
		g.VDIVPD(stepMinimum, m, m)
		g.VADDPD(m, minimum, m)
		g.VROUNDPD(operand.U8(down), m, m)
		g.VMOVUPD(m, near)
		for j := range 2 {
			if j > 0 {
				g.VMOVUPD(near, m)
				g.VADDPD(one, m, m)
			}
			g.zero(v, t)
			g.VMAXPD(m, t, m)
			g.VMOVUPD(most, t)
			g.VMINPD(m, t, m)
			g.VMOVUPD(hasMinimum, t)
			g.VBLENDVPD(t, m, minimum, m)
			g.VSUBPD(minimum, m, y)
			g.VMULPD(stepMinimum, y, y)
			g.VMULPD(x, p, change)
			g.VMULPD(y, q, t)
			g.VADDPD(t, change, change)
			g.VMULPD(minusTwo, change, change)
			g.VMULPD(x, a, t)
			g.VMULPD(x, t, t)
			g.VADDPD(t, change, change)
			g.VADDPD(b, b, t)
			g.VMULPD(x, t, t)
			g.VMULPD(y, t, t)
			g.VADDPD(t, change, change)
			g.VMULPD(c, y, t)
			g.VMULPD(y, t, t)
			g.VADDPD(t, change, change)
			g.VCMPPD(operand.U8(below), best, change, t)
			g.VBLENDVPD(t, change, best, best)
			g.VBLENDVPD(t, n, bestScale, bestScale)
			g.VBLENDVPD(t, m, bestMinimum, bestMinimum)
		}
	}
	g.VMOVUPD(valid, t)
	g.VBLENDVPD(t, bestScale, scale, bestScale)
	g.VBLENDVPD(t, bestMinimum, minimum, bestMinimum)
	g.VCMPPD(operand.U8(notEqual), scale, bestScale, scale)
	g.VCMPPD(operand.U8(notEqual), minimum, bestMinimum, minimum)
	g.VORPD(minimum, scale, scale)
	g.VMOVMSKPD(scale, some)
	g.SHLL(operand.U8(12), some)
	g.SHRL(operand.U8(4), moved)
	g.ORL(some, moved)
	for i, r := range []reg.VecPhysical{bestScale, bestMinimum} {
		g.VCVTPD2PSY(r, r.AsX())
		g.VMOVUPS(r.AsX(), at(s, lane*(6+i)))
	}
	g.advance(16, s)
	g.DECQ(left)
	g.JNZ(operand.LabelRef("four"))
	g.Store(moved.As16(), g.ReturnIndex(0))
	g.VZEROUPPER()
	g.RET()
}
