package main

import (
	"github.com/mmcloughlin/avo/operand"
)

// vector writes the loops over one or two slices.
func vector(g *gen) {
	for _, v := range []isa{avx2, avx512} {
		g.dot(v)
		g.axpy(v)
	}
}

// dot sums in four vectors; the rest goes through one of them, vector by vector and then element by element.
func (g *gen) dot(v isa) {
	g.function("dot"+v.name, "func(a, b *float32, n int) float32",
		"returns Σ a[i]·b[i].")
	a, b, n := g.gp("a"), g.gp("b"), g.gp("n")
	for i := range 4 {
		g.zero(v, v.reg(i))
	}
	g.countdown("four", n, 4*v.lanes(), func() {
		for i := range 4 {
			g.VMOVUPS(at(a, i*v.bytes), v.reg(4+i))
		}
		for i := range 4 {
			g.VFMADD231PS(at(b, i*v.bytes), v.reg(4+i), v.reg(i))
		}
		g.ADDQ(operand.I32(int32(4*v.bytes)), a)
		g.ADDQ(operand.I32(int32(4*v.bytes)), b)
	})
	g.countdown("vector", n, v.lanes(), func() {
		g.VMOVUPS(at(a, 0), v.reg(4))
		g.VFMADD231PS(at(b, 0), v.reg(4), v.reg(0))
		g.ADDQ(operand.I32(int32(v.bytes)), a)
		g.ADDQ(operand.I32(int32(v.bytes)), b)
	})
	g.sum(v, v.reg(0), v.reg(1), v.reg(2), v.reg(3))
	g.countdown("element", n, 1, func() {
		g.VMOVSS(at(a, 0), v.reg(4).AsX())
		g.VFMADD231SS(at(b, 0), v.reg(4).AsX(), v.reg(0).AsX())
		g.ADDQ(operand.I32(4), a)
		g.ADDQ(operand.I32(4), b)
	})
	g.Store(v.reg(0).AsX(), g.ReturnIndex(0))
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) axpy(v isa) {
	g.function("axpy"+v.name, "func(dst, x *float32, n int, alpha float32)",
		"sets dst[i] += alpha·x[i].")
	dst, x, n := g.gp("dst"), g.gp("x"), g.gp("n")
	alpha := v.reg(8)
	g.VBROADCASTSS(g.param("alpha"), alpha)
	step := func(name string, vecs int) {
		g.countdown(name, n, vecs*v.lanes(), func() {
			for i := range vecs {
				g.VMOVUPS(at(dst, i*v.bytes), v.reg(i))
			}
			for i := range vecs {
				g.VFMADD231PS(at(x, i*v.bytes), alpha, v.reg(i))
			}
			for i := range vecs {
				g.VMOVUPS(v.reg(i), at(dst, i*v.bytes))
			}
			g.ADDQ(operand.I32(int32(vecs*v.bytes)), dst)
			g.ADDQ(operand.I32(int32(vecs*v.bytes)), x)
		})
	}
	step("four", 4)
	step("vector", 1)
	g.countdown("element", n, 1, func() {
		g.VMOVSS(at(dst, 0), v.reg(0).AsX())
		g.VFMADD231SS(at(x, 0), alpha.AsX(), v.reg(0).AsX())
		g.VMOVSS(v.reg(0).AsX(), at(dst, 0))
		g.ADDQ(operand.I32(4), dst)
		g.ADDQ(operand.I32(4), x)
	})
	g.VZEROUPPER()
	g.RET()
}
