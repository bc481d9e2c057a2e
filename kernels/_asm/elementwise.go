package main

import (
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// elementwise writes the loops of softmax, activations and RMSNorm. Lengths are multiples of the vector; callers pad the rest.
func elementwise(g *gen) {
	c := g.expConstants()
	shifts := g.signShifts()
	for _, v := range []isa{avx2, avx512} {
		g.expSum(v, c)
		g.decays(v, c)
		for _, k := range gates {
			g.gated(v, c, k)
		}
		g.siluBack(v, c)
		g.signedRoots(v, c, shifts)
		g.maximum(v)
		g.scaleMul(v)
		g.scale(v)
	}
}

// expConstants are float32 values in memory.
type expConstants struct {
	low, high, highAVX2, log2e, ln2Hi, ln2Lo, one, sign operand.Mem
	geluLinear, geluCube                                operand.Mem // coefficients of −2u in x and x³
	p                                                   []operand.Mem
}

func (g *gen) expConstants() expConstants {
	float := func(name string, f float32) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		g.AddDatum(0, operand.U32(math.Float32bits(f)))
		return m
	}
	c := expConstants{
		low:      float("expLow", -87.33654),     // log 2⁻¹²⁶
		high:     float("expHigh", 100),          // beyond, the result is infinite anyway
		highAVX2: float("expHighAVX2", 88.37626), // log 2^127.5
		log2e:    float("log2e", math.Log2E),
		ln2Hi:    float("ln2Hi", 0.693359375), ln2Lo: float("ln2Lo", -2.12194440e-4),
		one: float("one", 1), sign: float("sign", float32(math.Copysign(0, -1))),
		geluLinear: float("geluLinear", float32(-2*math.Sqrt(2/math.Pi))), geluCube: float("geluCube", float32(-2*math.Sqrt(2/math.Pi)*0.044715)),
	}
	// (eʳ − 1 − r)/r² for |r| ≤ ½·log 2, the polynomial of Cephes' expf (Moshier).
	for i, f := range []float32{1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
		5.0000001201e-1} {
		c.p = append(c.p, float("expP"+string(rune('0'+i)), f))
	}
	return c
}

// exp sets register x to its exponential; it needs registers n, r, y and m. With n = round(x/log 2) and r = x − n·log 2
// it is 2ⁿ·eʳ. The relative error is below 2⁻²². It is 0 below 2⁻¹²⁶: a processor makes subnormal values, and zeros of what is below them,
// in microcode, which takes a vector 150 nanoseconds. AVX2 saturates at 2^127.5. AVX-512 uses K1.
func (g *gen) exp(v isa, c expConstants, x, n, r, y, m reg.VecPhysical) {
	wide := v.bytes == 64
	load := func(from operand.Mem, to reg.Register) { g.VBROADCASTSS(from, to) }
	high, normal := c.high, reg.Register(reg.K1)
	if !wide {
		high, normal = c.highAVX2, m
	}
	load(c.low, n)
	g.VCMPPS(operand.U8(5), n, x, normal) // not less than; true for NaN
	// The second source of a maximum is what NaN leaves: x.
	g.VMAXPS(x, n, x)
	load(high, n)
	g.VMINPS(x, n, x)
	load(c.log2e, n)
	g.VMULPS(x, n, n)
	if wide {
		g.VRNDSCALEPS(operand.U8(8), n, n)
	} else {
		g.VROUNDPS(operand.U8(8), n, n)
	}
	load(c.ln2Hi, r)
	g.VFNMADD231PS(r, n, x)
	load(c.ln2Lo, r)
	g.VFNMADD231PS(r, n, x) // x is r from here on
	load(c.p[0], y)
	for _, p := range c.p[1:] {
		load(p, r)
		g.VFMADD213PS(r, x, y)
	}
	g.VMULPS(x, x, r)
	g.VFMADD213PS(x, r, y) // y·r² + r
	load(c.one, r)
	g.VADDPS(r, y, y)
	if wide {
		g.VSCALEFPS_Z(n, y, reg.K1, x)
		return
	}
	g.VCVTPS2DQ(n, n)
	g.VPSLLD(operand.U8(23), n, n)
	g.VPADDD(n, r, n) // 1.0's exponent plus n
	g.VMULPS(n, y, x)
	g.VANDPS(m, x, x)
}

func (g *gen) advance(bytes int, pointers ...reg.Register) {
	for _, p := range pointers {
		g.ADDQ(operand.I32(int32(bytes)), p)
	}
}

func (g *gen) expSum(v isa, c expConstants) {
	g.function("expSum"+v.name, "func(dst, src *float32, n int, shift float32) float32",
		"sets dst[i] = exp(src[i] − shift) and returns the sum.")
	dst, src, n := g.gp("dst"), g.gp("src"), g.gp("n")
	sum, sum2, shift := v.reg(0), v.reg(1), v.reg(2)
	g.zero(v, sum)
	g.zero(v, sum2)
	g.VBROADCASTSS(g.param("shift"), shift)
	g.countdown("two", n, 2*v.lanes(), func() {
		for i := range 2 {
			x := v.reg(3 + 5*i)
			g.VMOVUPS(at(src, i*v.bytes), x)
			g.VSUBPS(shift, x, x)
			g.exp(v, c, x, v.reg(4+5*i), v.reg(5+5*i), v.reg(6+5*i), v.reg(7+5*i))
			g.VMOVUPS(x, at(dst, i*v.bytes))
			g.VADDPS(x, v.reg(i), v.reg(i))
		}
		g.advance(2*v.bytes, src, dst)
	})
	g.countdown("vector", n, v.lanes(), func() {
		x := v.reg(3)
		g.VMOVUPS(at(src, 0), x)
		g.VSUBPS(shift, x, x)
		g.exp(v, c, x, v.reg(4), v.reg(5), v.reg(6), v.reg(7))
		g.VMOVUPS(x, at(dst, 0))
		g.VADDPS(x, sum, sum)
		g.advance(v.bytes, src, dst)
	})
	g.sum(v, sum, sum2)
	g.Store(sum.AsX(), g.ReturnIndex(0))
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) decays(v isa, c expConstants) {
	g.function("decays"+v.name, "func(dst *float32, sums *float64, n int, s float64)", "sets dst[i] = exp(s − sums[i]).")
	dst, sums, n := g.gp("dst"), g.gp("sums"), g.gp("n")
	s := v.reg(0)
	g.VBROADCASTSD(g.param("s"), s)
	g.countdown("vector", n, v.lanes(), func() {
		lo, hi := v.reg(1), v.reg(2)
		g.VSUBPD(at(sums, 0), s, lo)
		g.VSUBPD(at(sums, v.bytes), s, hi)
		if v.bytes == 64 {
			g.VCVTPD2PS(lo, lo.AsY())
			g.VCVTPD2PS(hi, hi.AsY())
			g.VINSERTF64X4(operand.U8(1), hi.AsY(), lo, lo)
		} else {
			g.VCVTPD2PSY(lo, lo.AsX())
			g.VCVTPD2PSY(hi, hi.AsX())
			g.VINSERTF128(operand.U8(1), hi.AsX(), lo, lo)
		}
		g.exp(v, c, lo, v.reg(2), v.reg(3), v.reg(4), v.reg(5))
		g.VMOVUPS(lo, at(dst, 0))
		g.advance(v.bytes, dst)
		g.advance(2*v.bytes, sums)
	})
	g.VZEROUPPER()
	g.RET()
}

// gate is an activation that gated writes: x·σ(y) or σ(y), times up.
type gate struct {
	name, doc string
	gelu      bool // the argument is 2·√(2/π)·(x+0.044715·x³) and not x
	alone     bool // σ is all there is
}

var gates = []gate{
	{name: "siluMul", doc: "sets dst[i] = gate[i]/(1+exp(−gate[i]))·up[i]."},
	{name: "geluMul", doc: "sets dst[i] = gate[i]/(1+exp(−2u))·up[i], u = √(2/π)·(gate[i]+0.044715·gate[i]³).", gelu: true},
	{name: "sigmoidMul", doc: "sets dst[i] = 1/(1+exp(−gate[i]))·up[i].", alone: true},
}

func (g *gen) gated(v isa, c expConstants, k gate) {
	g.function(k.name+v.name, "func(dst, gate, up *float32, n int)", k.doc)
	dst, gate, up, n := g.gp("dst"), g.gp("gate"), g.gp("up"), g.gp("n")
	g.countdown("vector", n, v.lanes(), func() {
		x, t, a := v.reg(0), v.reg(1), v.reg(5)
		g.VMOVUPS(at(gate, 0), a)
		if k.gelu {
			g.VMULPS(a, a, x)
			g.VBROADCASTSS(c.geluCube, t)
			g.VBROADCASTSS(c.geluLinear, v.reg(2))
			g.VFMADD213PS(v.reg(2), t, x)
			g.VMULPS(a, x, x)
		} else {
			g.VBROADCASTSS(c.sign, t)
			g.VXORPS(t, a, x)
		}
		g.exp(v, c, x, t, v.reg(2), v.reg(3), v.reg(4))
		g.VBROADCASTSS(c.one, t)
		g.VADDPS(t, x, x)
		if k.alone {
			a = t
		}
		g.VDIVPS(x, a, a)
		g.VMULPS(at(up, 0), a, a)
		g.VMOVUPS(a, at(dst, 0))
		g.advance(v.bytes, dst, gate, up)
	})
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) siluBack(v isa, c expConstants) {
	g.function("siluBack"+v.name, "func(dGate, dUp, dz, gate, up *float32, n int)",
		"sets dUp[i] = dz[i]·g·s and dGate[i] = dz[i]·up[i]·s·(1+g·(1−s)), g = gate[i], s = 1/(1+exp(−g)).")
	dGate, dUp, dz, gate, up, n := g.gp("dGate"), g.gp("dUp"), g.gp("dz"), g.gp("gate"), g.gp("up"), g.gp("n")
	g.countdown("vector", n, v.lanes(), func() {
		s, t, one, a, grad := v.reg(0), v.reg(1), v.reg(2), v.reg(5), v.reg(6)
		g.VMOVUPS(at(gate, 0), a)
		g.VBROADCASTSS(c.sign, t)
		g.VXORPS(t, a, s)
		g.exp(v, c, s, t, v.reg(2), v.reg(3), v.reg(4))
		g.VBROADCASTSS(c.one, one)
		g.VADDPS(one, s, s)
		g.VDIVPS(s, one, s)
		g.VSUBPS(s, one, t)
		g.VMULPS(a, t, t)
		g.VADDPS(one, t, t)
		g.VMULPS(s, t, t)
		g.VMULPS(s, a, a)
		g.VMOVUPS(at(dz, 0), grad)
		g.VMULPS(grad, a, a)
		g.VMULPS(grad, t, t)
		g.VMULPS(at(up, 0), t, t)
		g.VMOVUPS(a, at(dUp, 0))
		g.VMOVUPS(t, at(dGate, 0))
		g.advance(v.bytes, dGate, dUp, dz, gate, up)
	})
	g.VZEROUPPER()
	g.RET()
}

// signShifts are what brings bits 0 to 15 of a word to its top, each in a lane of its own.
func (g *gen) signShifts() operand.Mem {
	m := g.StaticGlobal("signShifts")
	g.DataAttributes(rodata)
	for i := range 16 {
		g.AddDatum(4*i, operand.U32(31-i))
	}
	return m
}

func (g *gen) signedRoots(v isa, c expConstants, shifts operand.Mem) {
	g.function("signedRoots"+v.name, "func(dst, x *float32, bits *uint64, n int)",
		"sets dst[i] = √x[i], with bit i of bits as its sign. It reads up to three bytes past these bits.")
	dst, x, bits, n := g.gp("dst"), g.gp("x"), g.gp("bits"), g.gp("n")
	sign, shift := v.reg(2), v.reg(3)
	g.VBROADCASTSS(c.sign, sign)
	g.VMOVUPS(shifts, shift)
	g.countdown("vector", n, v.lanes(), func() {
		root, t := v.reg(0), v.reg(1)
		g.VSQRTPS(at(x, 0), root)
		g.VPBROADCASTD(at(bits, 0), t)
		g.VPSLLVD(shift, t, t)
		g.VANDPS(sign, t, t)
		g.VXORPS(t, root, root)
		g.VMOVUPS(root, at(dst, 0))
		g.advance(v.bytes, dst, x)
		g.ADDQ(operand.Imm(uint64(v.lanes()/8)), bits)
	})
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) maximum(v isa) {
	g.function("maximum"+v.name, "func(x *float32, n int) float32", "returns the largest of n > 0 elements.")
	x, n := g.gp("x"), g.gp("n")
	g.VMOVUPS(at(x, 0), v.reg(0))
	g.countdown("vector", n, v.lanes(), func() {
		g.VMAXPS(at(x, 0), v.reg(0), v.reg(0))
		g.advance(v.bytes, x)
	})
	if v.bytes == 64 {
		g.VEXTRACTF64X4(operand.U8(1), v.reg(0), v.reg(1).AsY())
		g.VMAXPS(v.reg(1).AsY(), v.reg(0).AsY(), v.reg(0).AsY())
	}
	a, b := v.reg(0).AsX(), v.reg(1).AsX()
	g.VEXTRACTF128(operand.U8(1), v.reg(0).AsY(), b)
	g.VMAXPS(b, a, a)
	g.VMOVHLPS(a, b, b)
	g.VMAXPS(b, a, a)
	g.VMOVSHDUP(a, b)
	g.VMAXSS(b, a, a)
	g.Store(a, g.ReturnIndex(0))
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) scaleMul(v isa) {
	g.function("scaleMul"+v.name, "func(dst, x, w *float32, n int, scale float32)", "sets dst[i] = x[i]·scale·w[i].")
	dst, x, w, n := g.gp("dst"), g.gp("x"), g.gp("w"), g.gp("n")
	scale := v.reg(1)
	g.VBROADCASTSS(g.param("scale"), scale)
	g.countdown("vector", n, v.lanes(), func() {
		g.VMULPS(at(x, 0), scale, v.reg(0))
		g.VMULPS(at(w, 0), v.reg(0), v.reg(0))
		g.VMOVUPS(v.reg(0), at(dst, 0))
		g.advance(v.bytes, dst, x, w)
	})
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) scale(v isa) {
	g.function("scale"+v.name, "func(x *float32, n int, scale float32)", "sets x[i] = x[i]·scale.")
	x, n := g.gp("x"), g.gp("n")
	scale := v.reg(1)
	g.VBROADCASTSS(g.param("scale"), scale)
	g.countdown("vector", n, v.lanes(), func() {
		g.VMULPS(at(x, 0), scale, v.reg(0))
		g.VMOVUPS(v.reg(0), at(x, 0))
		g.advance(v.bytes, x)
	})
	g.VZEROUPPER()
	g.RET()
}
