package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// peak writes loops that do nothing but one arithmetic instruction on registers, 16 independent chains of it, and loops
// that do nothing but read or copy memory: the limits that kernels are measured against.
func peak(g *gen) {
	loop := func(name string, v isa, chains int, step func(acc int)) {
		g.function(name, "func(n int)",
			fmt.Sprintf("runs n > 0 times through %d independent instructions.", chains))
		n := g.gp("n")
		for i := range v.count() {
			g.zero(v, v.reg(i))
		}
		g.Label("loop")
		for i := range chains {
			step(i)
		}
		g.DECQ(n)
		g.JNZ(operand.LabelRef("loop"))
		g.VZEROUPPER()
		g.RET()
	}
	z, y := avx512.reg, avx2.reg
	loop("peakF32AVX512", avx512, 16, func(i int) { g.VFMADD231PS(z(30), z(31), z(i)) })
	loop("peakF32AVX2", avx2, 12, func(i int) { g.VFMADD231PS(y(14), y(15), y(i)) })
	loop("peakBF16", avx512, 16, func(i int) { g.vdpbf16ps(z(30), z(31), z(i)) })
	loop("peakInt8", avx512, 16, func(i int) { g.vpdpbusd(z(30), z(31), z(i)) })

	g.function("peakAMX", "func(n int)", "runs n > 0 times through 4 independent instructions.")
	rounds := g.gp("n")
	cfg := reg.RAX
	g.LEAQ(g.amxConfig("peakTiles").Offset(64*(amxSteps-1)), cfg)
	g.tileConfig(cfg)
	for t := range uint8(8) {
		g.tileZero(t)
	}
	g.Label("loop")
	for i := range uint8(4) {
		g.tdpbf16ps(tileC+i, tileA+i/2, tileB+i%2)
	}
	g.DECQ(rounds)
	g.JNZ(operand.LabelRef("loop"))
	g.tileRelease()
	g.RET()

	g.function("readAVX2", "func(src *byte, n int)",
		"loads n bytes, a multiple of 256.")
	src, n := g.gp("src"), g.gp("n")
	g.countdown("block", n, 256, func() {
		for i := range 8 {
			g.VMOVUPS(at(src, 32*i), y(i))
		}
		g.ADDQ(operand.I32(256), src)
	})
	g.VZEROUPPER()
	g.RET()
}
