package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// conv writes the sum of a convolution's taps. Products and sums are rounded one after the other, as Go rounds them: memory is the limit.
func conv(g *gen) {
	for _, v := range []isa{avx2, avx512} {
		g.weigh(v)
	}
}

func (g *gen) weigh(v isa) {
	g.function("weigh"+v.name, "func(dst, bias, w, x *float32, n, taps, wStride, xStride int)",
		"sets dst[c] = bias[c] + Σ_k w_k[c]·x_k[c] over taps > 0 rows of w and x, whose beginnings are so many bytes apart.")
	dst, bias, w, x, n := g.gp("dst"), g.gp("bias"), g.gp("w"), g.gp("x"), g.gp("n")
	wStride, xStride := g.gp("wStride"), g.gp("xStride")
	step := func(name string, vecs int) {
		g.countdown(name, n, vecs*v.lanes(), func() {
			for i := range vecs {
				g.VMOVUPS(at(bias, i*v.bytes), v.reg(i))
			}
			wk, xk, k := g.GP64(), g.GP64(), g.gp("taps")
			g.MOVQ(w, wk)
			g.MOVQ(x, xk)
			g.Label(name + "_tap")
			for i := range vecs {
				t := v.reg(vecs + i)
				g.VMOVUPS(at(wk, i*v.bytes), t)
				g.VMULPS(at(xk, i*v.bytes), t, t)
				g.VADDPS(t, v.reg(i), v.reg(i))
			}
			g.ADDQ(wStride, wk)
			g.ADDQ(xStride, xk)
			g.DECQ(k)
			g.JNZ(operand.LabelRef(name + "_tap"))
			for i := range vecs {
				g.VMOVUPS(v.reg(i), at(dst, i*v.bytes))
			}
			g.advance(vecs*v.bytes, []reg.Register{dst, bias, w, x}...)
		})
	}
	step("four", 4)
	step("vector", 1)
	g.VZEROUPPER()
	g.RET()
}
