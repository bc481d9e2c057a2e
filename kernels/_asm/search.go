package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// search writes the searches of search.go.
func search(g *gen) {
	word := func(name string, bits uint32) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		g.AddDatum(0, operand.U32(bits))
		return m
	}
	c := searchConstants{word("searchMagic", 0x4b400000), word("searchOne", 0x3f800000), word("oneLevel", 0x36000000), word("scoreNoise", 0x35000000)}
	magnitude, infinity := word("magnitude", 1<<31-1), word("infinity", 0x7f800000)
	for _, v := range []isa{avx2, avx512} {
		for _, weighted := range []bool{true, false} {
			g.search(v, c, false, weighted)
			g.search(v, c, true, weighted)
			g.choose(v, c, weighted)
			g.multiples(v, c, weighted)
		}
		g.spreadRanges(v)
		g.spans(v, magnitude, infinity)
		g.nearestLevels(v)
		g.latticeErrors(v, c)
		g.largest(v)
		g.normalize(v)
	}
}

// searchConstants are constants of search.go, and 1.
type searchConstants struct{ magic, one, oneLevel, scoreNoise operand.Mem }

const lane = 64 // bytes of a Lane

// clamp puts parameters lo and hi into every lane of registers 30 and 31, or of memory where there are none. It needs t.
func (g *gen) clamp(v isa, t reg.VecPhysical) (lo, hi operand.Op) {
	if v.count() > 30 {
		for i, name := range []string{"lo", "hi"} {
			g.VPBROADCASTD(g.Load(g.Param(name), g.GP32()), v.reg(30+i))
		}
		return v.reg(30), v.reg(31)
	}
	m := g.AllocLocal(128)
	for i, name := range []string{"lo", "hi"} {
		r := g.Load(g.Param(name), g.GP32())
		g.VMOVD(r, t.AsX())
		g.VPBROADCASTD(t.AsX(), t)
		g.VMOVUPS(t, m.Offset(64*i))
	}
	return m, m.Offset(64)
}

// invert sets inv to 1/scale, 0 for 0; it needs t.
func (g *gen) invert(v isa, c searchConstants, scale, inv, t reg.VecPhysical) {
	g.VBROADCASTSS(c.one, inv)
	g.zero(v, t)
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(4), t, scale, reg.K1)
		g.VDIVPS_Z(scale, inv, reg.K1, inv)
		return
	}
	g.VCMPPS(operand.U8(4), t, scale, t)
	g.VDIVPS(scale, inv, inv)
	g.VANDPS(t, inv, inv)
}

// keep stores new values where the mask, K1 or register mask, is set; it needs t.
func (g *gen) keep(v isa, mask, t reg.VecPhysical, value reg.VecPhysical, to operand.Mem) {
	if v.bytes == 64 {
		g.VMOVUPS(value, reg.K1, to)
		return
	}
	g.VMOVUPS(to, t)
	g.VBLENDVPS(mask, value, t, t)
	g.VMOVUPS(t, to)
}

// importances names what differs where all weights count the same.
func importances(weighted bool) (infix, parameter string) {
	if weighted {
		return "", ", wt"
	}
	return "Equal", ""
}

// search is BestScale.Search, or BestMinimum.Search.
func (g *gen) search(v isa, c searchConstants, minimum, weighted bool) {
	infix, wtParam := importances(weighted)
	if minimum {
		g.function("searchMinimum"+infix+v.name,
			"func(best, x"+wtParam+" *float32, n int, moments, ranges *float32, count, rounds int, lo, hi int32)",
			"tries count ranges and as many rounds the best, on n > 0 weights, an even number.")
	} else {
		g.function("searchScale"+infix+v.name,
			"func(best, x"+wtParam+" *float32, n int, inverse *float32, levels *float32, count, rounds int, lo, hi int32)",
			"tries count levels and as many rounds the best, on n > 0 weights, an even number.")
	}
	best, x, n := g.gp("best"), g.gp("x"), g.gp("n")
	var wt, pw reg.GPVirtual
	if weighted {
		wt, pw = g.gp("wt"), g.GP64()
	}
	count, rounds := g.gp("count"), g.gp("rounds")
	perGroup, kind := "inverse", "levels"
	if minimum {
		perGroup, kind = "moments", "ranges"
	}
	inverse, candidates := g.gp(perGroup), g.gp(kind)
	lo, hi := g.clamp(v, v.reg(0))
	px, left := g.GP64(), g.GP64()
	sum := func(k, i int) reg.VecPhysical { return v.reg(2*k + i) } // 0: LL, 1: LX, 2: L
	magic, inv, low := v.reg(6), v.reg(7), v.reg(8)
	xj, q, w, t := v.reg(9), v.reg(10), v.reg(11), v.reg(12)
	sums := 2
	if minimum {
		sums = 3
	}
	g.VBROADCASTSS(c.magic, magic)
	g.ADDQ(count, rounds) // all that is left
	g.Label("candidate")
	g.TESTQ(count, count)
	g.JLE(operand.LabelRef("again"))
	if minimum {
		g.VMOVUPS(at(candidates, 0), q)
		g.VMOVUPS(at(candidates, lane), low)
		g.invert(v, c, q, inv, t)
		g.ADDQ(operand.I32(2*lane), candidates)
	} else {
		g.VBROADCASTSS(at(candidates, 0), inv)
		g.VMULPS(at(inverse, 0), inv, inv)
		g.ADDQ(operand.I32(4), candidates)
	}
	g.JMP(operand.LabelRef("start"))
	g.Label("again")
	g.VMOVUPS(at(best, lane), q)
	g.invert(v, c, q, inv, t)
	if minimum {
		g.VMOVUPS(at(best, 2*lane), low)
	}
	g.Label("start")
	for i := range 2 * sums {
		g.zero(v, v.reg(i))
	}
	g.MOVQ(x, px)
	if weighted {
		g.MOVQ(wt, pw)
	}
	g.MOVQ(n, left)
	g.Label("weights")
	for i := range 2 {
		g.VMOVUPS(at(px, lane*i), xj)
		if minimum {
			g.VADDPS(low, xj, q)
			g.VMULPS(inv, q, q)
		} else {
			g.VMULPS(inv, xj, q)
		}
		g.VADDPS(magic, q, q)
		g.VPMAXSD(lo, q, q)
		g.VPMINSD(hi, q, q)
		g.VSUBPS(magic, q, q)
		wq := q
		if weighted {
			g.VMULPS(at(pw, lane*i), q, w)
			wq = w
		}
		g.VMULPS(q, wq, t)
		g.VADDPS(t, sum(0, i), sum(0, i))
		g.VMULPS(xj, wq, t)
		g.VADDPS(t, sum(1, i), sum(1, i))
		if minimum {
			g.VADDPS(wq, sum(2, i), sum(2, i))
		}
	}
	g.advance(2*lane, px)
	if weighted {
		g.advance(2*lane, pw)
	}
	g.SUBQ(operand.I32(2), left)
	g.JG(operand.LabelRef("weights"))
	for k := range sums {
		g.VADDPS(sum(k, 1), sum(k, 0), sum(k, 0))
	}
	ll, lx, l := sum(0, 0), sum(1, 0), sum(2, 0)
	scale, score, mask := xj, q, w
	variance, mean := ll, v.reg(1)
	if minimum {
		variance = v.reg(3)
		g.VMULPS(at(inverse, 0), l, mean)
		g.VMULPS(mean, l, t)
		g.VSUBPS(t, ll, variance)
		g.VMULPS(at(inverse, lane), mean, t)
		g.VSUBPS(t, lx, lx)
	}
	g.VDIVPS(variance, lx, scale)
	g.VMULPS(lx, scale, score)
	// Ordered and above: NaN never is.
	const above = 0x1e
	excess, threshold := score, at(best, 0)
	if minimum {
		excess = v.reg(13)
		g.VSUBPS(threshold, score, excess)
		g.VMULPS(variance, excess, excess)
		g.VBROADCASTSS(c.scoreNoise, t)
		g.VMULPS(threshold, t, t)
		g.VMULPS(ll, t, t)
		if v.bytes == 64 {
			g.VCMPPS(operand.U8(above), t, excess, reg.K1)
		} else {
			g.VCMPPS(operand.U8(above), t, excess, mask)
		}
	} else if v.bytes == 64 {
		g.VCMPPS(operand.U8(above), threshold, score, reg.K1)
	} else {
		g.VCMPPS(operand.U8(above), threshold, score, mask)
	}
	if minimum {
		g.VBROADCASTSS(c.oneLevel, t)
		g.VMULPS(t, ll, t)
		if v.bytes == 64 {
			g.VCMPPS(operand.U8(above), t, variance, reg.K1, reg.K1)
		} else {
			g.VCMPPS(operand.U8(above), t, variance, t)
			g.VANDPS(t, mask, mask)
		}
	}
	results := []reg.VecPhysical{score, scale, ll}
	if minimum {
		g.VMULPS(mean, scale, mean)
		g.VSUBPS(at(inverse, 2*lane), mean, mean)
		results = []reg.VecPhysical{score, scale, mean, l, ll}
	}
	for i, r := range results {
		g.keep(v, mask, t, r, at(best, lane*i))
	}
	g.DECQ(count)
	g.DECQ(rounds)
	g.JG(operand.LabelRef("candidate"))
	g.VZEROUPPER()
	g.RET()
}

// choose is BestRange.Choose.
func (g *gen) choose(v isa, c searchConstants, weighted bool) {
	infix, wtParam := importances(weighted)
	g.function("chooseRange"+infix+v.name,
		"func(best, x"+wtParam+" *float32, n int, ranges *float32, count int, first, lo, hi int32)",
		"measures count > 0 ranges on n > 0 weights, an even number.")
	best, x, n := g.gp("best"), g.gp("x"), g.gp("n")
	var wt, pw reg.GPVirtual
	if weighted {
		wt, pw = g.gp("wt"), g.GP64()
	}
	ranges, count := g.gp("ranges"), g.gp("count")
	index := g.Load(g.Param("first"), g.GP32())
	lo, hi := g.clamp(v, v.reg(0))
	px, left := g.GP64(), g.GP64()
	magic, inv, low, scale := v.reg(6), v.reg(7), v.reg(8), v.reg(13)
	xj, q, t := v.reg(9), v.reg(10), v.reg(12)
	g.VBROADCASTSS(c.magic, magic)
	g.Label("candidate")
	g.VMOVUPS(at(ranges, 0), scale)
	g.VMOVUPS(at(ranges, lane), low)
	g.invert(v, c, scale, inv, t)
	g.ADDQ(operand.I32(2*lane), ranges)
	g.zero(v, v.reg(0))
	g.zero(v, v.reg(1))
	g.MOVQ(x, px)
	if weighted {
		g.MOVQ(wt, pw)
	}
	g.MOVQ(n, left)
	g.Label("weights")
	g.measureErrors(v, errorRegisters{xj, q, t, low, inv, magic, scale}, lo, hi, px, pw)
	g.SUBQ(operand.I32(2), left)
	g.JG(operand.LabelRef("weights"))
	err, mask := v.reg(0), q
	g.VADDPS(v.reg(1), err, err)
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(below), at(best, 0), err, reg.K1)
	} else {
		g.VCMPPS(operand.U8(below), at(best, 0), err, mask)
	}
	g.keep(v, mask, t, err, at(best, 0))
	g.VMOVD(index, xj.AsX())
	g.VPBROADCASTD(xj.AsX(), xj)
	g.keep(v, mask, t, xj, at(best, lane))
	g.INCL(index)
	g.DECQ(count)
	g.JG(operand.LabelRef("candidate"))
	g.VZEROUPPER()
	g.RET()
}

// multiples is BestMultiple.Choose.
func (g *gen) multiples(v isa, c searchConstants, weighted bool) {
	infix, wtParam := importances(weighted)
	g.function("multiples"+infix+v.name,
		"func(best, x"+wtParam+" *float32, n int, window, steps *float32, count int, lo, hi int32, from, to, most float32)",
		"measures count > 0 multiples on n > 0 weights, an even number.")
	best, x, n := g.gp("best"), g.gp("x"), g.gp("n")
	var wt, pw reg.GPVirtual
	if weighted {
		wt, pw = g.gp("wt"), g.GP64()
	}
	window, steps, count := g.gp("window"), g.gp("steps"), g.gp("count")
	field := func(i int) operand.Mem { return at(window, lane*i) } // Scale, Minimum, Q, M, Slope
	lo, hi := g.clamp(v, v.reg(0))
	px, left := g.GP64(), g.GP64()
	nextQ, nextM, q, m := v.reg(2), v.reg(3), v.reg(4), v.reg(5)
	magic, inv, low, scale := v.reg(6), v.reg(7), v.reg(8), v.reg(13)
	xj, level, t := v.reg(9), v.reg(10), v.reg(12)
	g.VBROADCASTSS(c.magic, magic)
	g.VMOVUPS(field(2), nextQ)
	g.VMOVUPS(field(3), nextM)
	whole := func(from, to string, clamped, next reg.VecPhysical) {
		// The second source, the first operand here, is what NaN leaves.
		if from == "" {
			g.zero(v, t)
		} else {
			g.VBROADCASTSS(g.param(from), t)
		}
		g.VMAXPS(t, next, clamped)
		g.VBROADCASTSS(g.param(to), t)
		g.VMINPS(t, clamped, clamped)
		const truncate = 11
		if v.bytes == 64 {
			g.VRNDSCALEPS(operand.U8(truncate), clamped, clamped)
		} else {
			g.VROUNDPS(operand.U8(truncate), clamped, clamped)
		}
	}
	g.Label("candidate")
	whole("from", "to", q, nextQ)
	whole("", "most", m, nextM)
	g.VMULPS(field(0), q, scale)
	g.VMULPS(field(1), m, low)
	g.VBROADCASTSS(at(steps, 0), t)
	g.VADDPS(t, nextQ, nextQ)
	g.VADDPS(field(4), nextM, nextM)
	g.VBROADCASTSS(at(steps, 4), t)
	g.VADDPS(t, nextM, nextM)
	g.advance(8, steps)
	g.invert(v, c, scale, inv, t)
	g.zero(v, v.reg(0))
	g.zero(v, v.reg(1))
	g.MOVQ(x, px)
	if weighted {
		g.MOVQ(wt, pw)
	}
	g.MOVQ(n, left)
	g.Label("weights")
	g.measureErrors(v, errorRegisters{xj, level, t, low, inv, magic, scale}, lo, hi, px, pw)
	g.SUBQ(operand.I32(2), left)
	g.JG(operand.LabelRef("weights"))
	err, mask := v.reg(0), level
	g.VADDPS(v.reg(1), err, err)
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(below), at(best, 0), err, reg.K1)
	} else {
		g.VCMPPS(operand.U8(below), at(best, 0), err, mask)
	}
	for i, r := range []reg.VecPhysical{err, q, m} {
		g.keep(v, mask, t, r, at(best, lane*i))
	}
	g.DECQ(count)
	g.JG(operand.LabelRef("candidate"))
	g.VZEROUPPER()
	g.RET()
}

// below is the predicate of an ordered comparison.
const below = 0x11

// errorRegisters are those of measureErrors.
type errorRegisters struct{ x, level, t, low, inv, magic, scale reg.VecPhysical }

// measureErrors adds the errors of two weights of each group to registers 0 and 1, and moves on; all weights count the same
// where pw is nil.
func (g *gen) measureErrors(v isa, r errorRegisters, lo, hi operand.Op, px, pw reg.GPVirtual) {
	for i := range 2 {
		g.VMOVUPS(at(px, lane*i), r.x)
		g.VADDPS(r.low, r.x, r.level)
		g.VMULPS(r.inv, r.level, r.level)
		g.VADDPS(r.magic, r.level, r.level)
		g.VPMAXSD(lo, r.level, r.level)
		g.VPMINSD(hi, r.level, r.level)
		g.VSUBPS(r.magic, r.level, r.level)
		g.VMULPS(r.scale, r.level, r.level)
		g.VSUBPS(r.low, r.level, r.level)
		g.VSUBPS(r.level, r.x, r.level)
		if pw != nil {
			g.VMULPS(at(pw, lane*i), r.level, r.t)
			g.VMULPS(r.level, r.t, r.t)
		} else {
			g.VMULPS(r.level, r.level, r.t)
		}
		g.VADDPS(r.t, v.reg(i), v.reg(i))
	}
	g.advance(2*lane, px)
	if pw != nil {
		g.advance(2*lane, pw)
	}
}

// spreadRanges is SpreadRanges.
func (g *gen) spreadRanges(v isa) {
	g.function("spreadRanges"+v.name, "func(ranges, a, b, c, factors *float32, count int)", "makes count > 0 ranges.")
	ranges, factors, count := g.gp("ranges"), g.gp("factors"), g.gp("count")
	a, b, c := v.reg(0), v.reg(1), v.reg(2)
	g.VMOVUPS(at(g.gp("a"), 0), a)
	g.VMOVUPS(at(g.gp("b"), 0), b)
	g.VMOVUPS(at(g.gp("c"), 0), c)
	scale, minimum := v.reg(3), v.reg(4)
	g.Label("range")
	g.VBROADCASTSS(at(factors, 0), scale)
	g.VMULPS(a, scale, scale)
	g.VMOVUPS(scale, at(ranges, 0))
	g.VBROADCASTSS(at(factors, 4), minimum)
	g.VMULPS(b, minimum, minimum)
	g.VSUBPS(c, minimum, minimum)
	g.VMOVUPS(minimum, at(ranges, lane))
	g.advance(8, factors)
	g.advance(2*lane, ranges)
	g.DECQ(count)
	g.JG(operand.LabelRef("range"))
	g.VZEROUPPER()
	g.RET()
}

// spans is Spans.
func (g *gen) spans(v isa, magnitude, infinity operand.Mem) {
	g.function("spans"+v.name, "func(span, x, wt *float32, n int)", "describes groups of n > 0 weights, an even number.")
	span, x, wt, n := g.gp("span"), g.gp("x"), g.gp("wt"), g.gp("n")
	lo, hi, least := v.reg(4), v.reg(5), v.reg(6)
	abs, none, zero := v.reg(7), v.reg(8), v.reg(9)
	xj, wj, t, a := v.reg(10), v.reg(11), v.reg(12), v.reg(13)
	for i := range 4 {
		g.zero(v, v.reg(i))
	}
	g.zero(v, zero)
	g.VBROADCASTSS(magnitude, abs)
	g.VBROADCASTSS(infinity, none)
	g.VMOVUPS(none, least)
	g.VMOVUPS(at(x, 0), lo)
	g.VMOVUPS(lo, hi)
	g.Label("weights")
	for i := range 2 {
		g.VMOVUPS(at(x, lane*i), xj)
		g.VMOVUPS(at(wt, lane*i), wj)
		// The second source, the first operand here, is what NaN leaves.
		g.VMINPS(lo, xj, lo)
		g.VMAXPS(hi, xj, hi)
		g.VADDPS(wj, v.reg(i), v.reg(i))
		g.VMULPS(xj, wj, t)
		g.VADDPS(t, v.reg(2+i), v.reg(2+i))
		if v.bytes == 64 {
			g.VPANDD(abs, xj, a)
			g.VCMPPS(operand.U8(4), zero, a, reg.K1)
			g.VMINPS(least, a, reg.K1, least)
		} else {
			g.VANDPS(abs, xj, a)
			g.VCMPPS(operand.U8(0), zero, a, t)
			g.VBLENDVPS(t, none, a, a)
			g.VMINPS(least, a, least)
		}
	}
	g.advance(2*lane, x, wt)
	g.SUBQ(operand.I32(2), n)
	g.JG(operand.LabelRef("weights"))
	g.VADDPS(v.reg(1), v.reg(0), v.reg(0))
	g.VADDPS(v.reg(3), v.reg(2), v.reg(2))
	for i, r := range []reg.VecPhysical{lo, hi, least, v.reg(0), v.reg(2)} {
		g.VMOVUPS(r, at(span, lane*i))
	}
	g.VZEROUPPER()
	g.RET()
}

// nearestLevels is search.NearestLevels.
func (g *gen) nearestLevels(v isa) {
	g.function("nearestLevels"+v.name, "func(codes *int8, x *float32, n int, scale, minimum, lo, hi float32)",
		"rounds n > 0 weights, a multiple of 16.")
	codes, x, n := g.gp("codes"), g.gp("x"), g.gp("n")
	scale, minimum, lo, hi := v.reg(8), v.reg(9), v.reg(10), v.reg(11)
	g.VBROADCASTSS(g.param("scale"), scale)
	g.VBROADCASTSS(g.param("minimum"), minimum)
	g.VBROADCASTSS(g.param("lo"), lo)
	g.VBROADCASTSS(g.param("hi"), hi)
	g.Label("weights")
	for i := range 64 / v.bytes {
		q := v.reg(i)
		g.VADDPS(at(x, i*v.bytes), minimum, q)
		g.VDIVPS(scale, q, q)
		// The second source, the first operand here, is what NaN leaves.
		g.VMAXPS(lo, q, q)
		g.VMINPS(hi, q, q)
		g.VCVTPS2DQ(q, q)
	}
	if v.bytes == 64 {
		g.VPMOVDB(v.reg(0), at(codes, 0))
	} else {
		g.VPACKSSDW(v.reg(1), v.reg(0), v.reg(0)) // in each half: four of the first, four of the second
		g.VPERMQ(operand.U8(0xd8), v.reg(0), v.reg(0))
		g.VEXTRACTI128(operand.U8(1), v.reg(0), v.reg(1).AsX())
		g.VPACKSSWB(v.reg(1).AsX(), v.reg(0).AsX(), v.reg(0).AsX())
		g.VMOVDQU(v.reg(0).AsX(), at(codes, 0))
	}
	g.advance(64, x)
	g.advance(16, codes)
	g.SUBQ(operand.I32(16), n)
	g.JG(operand.LabelRef("weights"))
	g.VZEROUPPER()
	g.RET()
}

// latticeErrors is Lattice.Errors.
func (g *gen) latticeErrors(v isa, c searchConstants) {
	g.function("latticeErrors"+v.name, "func(err, lattice, steps *float32, count int, lo, hi, most float32)",
		"takes count > 0 steps.")
	errs, l, steps, count := g.gp("err"), g.gp("lattice"), g.gp("steps"), g.gp("count")
	field := func(i int) operand.Mem { return at(l, lane*i) } // Scale, Minimum, L, LL, W, InverseW
	zero, lo, hi, most := v.reg(0), v.reg(1), v.reg(2), v.reg(3)
	step, stepMin, inverse, inverseMin := v.reg(4), v.reg(5), v.reg(6), v.reg(7)
	q, x, m, y, e, best := v.reg(8), v.reg(9), v.reg(10), v.reg(11), v.reg(12), v.reg(13)
	one := v.reg(14)
	round := func(mode uint8, r reg.Register) {
		if v.bytes == 64 {
			g.VRNDSCALEPS(operand.U8(mode), r, r)
		} else {
			g.VROUNDPS(operand.U8(mode), r, r)
		}
	}
	g.zero(v, zero)
	g.VBROADCASTSS(g.param("lo"), lo)
	g.VBROADCASTSS(g.param("hi"), hi)
	g.VBROADCASTSS(g.param("most"), most)
	g.VBROADCASTSS(c.one, one)
	g.Label("step")
	g.VMOVUPS(at(steps, 0), step)
	g.VMOVUPS(at(steps, lane), stepMin)
	g.VDIVPS(step, one, inverse)
	g.VDIVPS(stepMin, one, inverseMin)
	g.VMULPS(field(0), inverse, q)
	g.VMAXPS(lo, q, q)
	g.VMINPS(hi, q, q)
	round(9, q) // down
	for i := range 2 {
		if i == 1 {
			g.VADDPS(one, q, q)
			g.VMINPS(hi, q, q)
		}
		g.VMULPS(step, q, x)
		g.VSUBPS(field(0), x, x)
		g.VMULPS(field(2), x, m)
		g.VMULPS(field(5), m, m)
		g.VADDPS(field(1), m, m)
		g.VMULPS(inverseMin, m, m)
		g.VMAXPS(zero, m, m)
		g.VMINPS(most, m, m)
		round(8, m) // to nearest
		g.VMULPS(stepMin, m, y)
		g.VSUBPS(field(1), y, y)
		g.VMULPS(field(2), y, m)
		g.VADDPS(m, m, m)
		g.VMULPS(field(3), x, e)
		g.VSUBPS(m, e, e)
		g.VMULPS(x, e, e)
		g.VMULPS(field(4), y, m)
		g.VMULPS(y, m, m)
		g.VADDPS(m, e, e)
		if i == 0 {
			g.VMOVUPS(e, best)
		}
	}
	// The second source, the first operand here, is what NaN leaves.
	g.VMINPS(best, e, best)
	g.VMOVUPS(best, at(errs, 0))
	g.advance(lane, errs)
	g.advance(2*lane, steps)
	g.DECQ(count)
	g.JG(operand.LabelRef("step"))
	g.VZEROUPPER()
	g.RET()
}

// largest is search.Largest for one vector of the lanes, 64 bytes apart.
func (g *gen) largest(v isa) {
	g.function("largest"+v.name, "func(most, x *float32, n int)", "sets most to the largest of n > 0 values, or 0.")
	x, n := g.gp("x"), g.gp("n")
	most := v.reg(0)
	g.zero(v, most)
	g.Label("value")
	g.VMOVUPS(at(x, 0), v.reg(1))
	// The second source, the first operand here, is what NaN leaves.
	g.VMAXPS(most, v.reg(1), most)
	g.advance(lane, x)
	g.DECQ(n)
	g.JNZ(operand.LabelRef("value"))
	g.VMOVUPS(most, at(g.gp("most"), 0))
	g.VZEROUPPER()
	g.RET()
}

// normalize is search.Normalize for one vector of the lanes, 64 bytes apart.
func (g *gen) normalize(v isa) {
	g.function("normalize"+v.name, "func(x *float32, n int, most, factor *float32)", "normalizes n > 0 values.")
	x, n := g.gp("x"), g.gp("n")
	most, factor, zero, t := v.reg(0), v.reg(1), v.reg(2), v.reg(3)
	g.VMOVUPS(at(g.gp("most"), 0), most)
	g.VMOVUPS(at(g.gp("factor"), 0), factor)
	g.zero(v, zero)
	g.Label("value")
	g.VMOVUPS(at(x, 0), t)
	// The second source, the first operand here, is what NaN leaves.
	g.VMINPS(t, most, t)
	g.VMULPS(factor, t, t)
	g.VMAXPS(zero, t, t)
	g.VMOVUPS(t, at(x, 0))
	g.advance(lane, x)
	g.DECQ(n)
	g.JNZ(operand.LabelRef("value"))
	g.VZEROUPPER()
	g.RET()
}
