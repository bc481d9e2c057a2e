package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// rope writes the rotation of one token's heads. A vector of cosines and one of sines serve all heads before the next
// are loaded. Products are rounded before they are added, as Go does it, so that results are the same bits.
func rope(g *gen) {
	twice := g.StaticGlobal("ropeTwice")
	g.DataAttributes(rodata)
	for i := range 16 {
		g.AddDatum(4*i, operand.U32(uint32(i/2)))
	}
	signs := g.StaticGlobal("ropeSigns")
	g.DataAttributes(rodata)
	for i := range 16 {
		g.AddDatum(4*i, operand.U32(uint32(1-i%2)<<31))
	}
	for _, v := range []isa{avx2, avx512} {
		g.ropeHalves(v)
		g.ropePairs(v, twice, signs)
	}
}

// heads emits a loop over heads, headDim elements apart from p on, that leaves p past the last.
func (g *gen) heads(p, heads, headDim reg.Register, body func()) {
	n := g.GP64()
	g.MOVQ(heads, n)
	g.Label("head")
	body()
	g.LEAQ(operand.Mem{Base: p, Index: headDim, Scale: 4}, p)
	g.DECQ(n)
	g.JNZ(operand.LabelRef("head"))
}

func (g *gen) ropeHalves(v isa) {
	g.function("ropeHalves"+v.name, "func(x *float32, heads, headDim, half int, cos, sin *float32, n int)",
		fmt.Sprintf("rotates dimensions (i, i+half) of each head for i < n, a multiple of %d. heads > 0.", v.lanes()))
	x, heads, headDim, half := g.gp("x"), g.gp("heads"), g.gp("headDim"), g.gp("half")
	cos, sin, n := g.gp("cos"), g.gp("sin"), g.gp("n")
	c, s, a, b, t := v.reg(0), v.reg(1), v.reg(2), v.reg(3), v.reg(4)
	p := g.GP64()
	g.countdown("vector", n, v.lanes(), func() {
		g.VMOVUPS(at(cos, 0), c)
		g.VMOVUPS(at(sin, 0), s)
		g.MOVQ(x, p)
		g.heads(p, heads, headDim, func() {
			second := operand.Mem{Base: p, Index: half, Scale: 4}
			g.VMOVUPS(at(p, 0), a)
			g.VMOVUPS(second, b)
			g.VMULPS(b, s, t)
			g.VMULPS(b, c, b)
			g.VMULPS(a, s, v.reg(5))
			g.VMULPS(a, c, a)
			g.VSUBPS(t, a, a)
			g.VADDPS(v.reg(5), b, b)
			g.VMOVUPS(a, at(p, 0))
			g.VMOVUPS(b, second)
		})
		g.advance(v.bytes, x, cos, sin)
	})
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) ropePairs(v isa, twice, signs operand.Mem) {
	g.function("ropePairs"+v.name, "func(x *float32, heads, headDim int, cos, sin *float32, n int)",
		fmt.Sprintf("rotates dimensions (2i, 2i+1) of each head for i < n, a multiple of %d. heads > 0.", v.lanes()/2))
	x, heads, headDim := g.gp("x"), g.gp("heads"), g.gp("headDim")
	cos, sin, n := g.gp("cos"), g.gp("sin"), g.gp("n")
	c, s, a, b, index := v.reg(0), v.reg(1), v.reg(2), v.reg(3), v.reg(4)
	lower := func(r reg.VecPhysical) reg.Register {
		if v.bytes == 64 {
			return r.AsY()
		}
		return r.AsX()
	}
	p := g.GP64()
	g.VMOVUPS(twice, index)
	g.countdown("vector", n, v.lanes()/2, func() {
		g.VMOVUPS(at(cos, 0), lower(c))
		g.VMOVUPS(at(sin, 0), lower(s))
		g.VPERMPS(c, index, c)
		g.VPERMPS(s, index, s)
		g.VXORPS(signs, s, s)
		g.MOVQ(x, p)
		g.heads(p, heads, headDim, func() {
			g.VMOVUPS(at(p, 0), a)
			g.VPERMILPS(operand.U8(0b10_11_00_01), a, b)
			g.VMULPS(a, c, a)
			g.VMULPS(b, s, b)
			g.VADDPS(b, a, a)
			g.VMOVUPS(a, at(p, 0))
		})
		g.advance(v.bytes/2, cos, sin)
		g.advance(v.bytes, x)
	})
	g.VZEROUPPER()
	g.RET()
}
