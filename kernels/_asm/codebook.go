package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// entry is the size of codebook's entry: what a half costs each of 16 rows, and the same with a sign turned.
const entry = 2 * lane

// codebook writes the searches of codebooks.
func codebook(g *gen) {
	word := func(name string, bits uint32) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		g.AddDatum(0, operand.U32(bits))
		return m
	}
	c := codebookConstants{most: word("most", 0x7f7fffff), four: word("four", 0x40800000), one: word("oneWord", 1)}
	for _, v := range []isa{avx2, avx512} {
		for _, turned := range []bool{false, true} {
			g.fillHalves(v, c, turned)
			g.nearestWord(v, c, turned)
		}
	}
}

type codebookConstants struct{ most, four, one operand.Mem }

func turnedName(turned bool) string {
	if turned {
		return "Turned"
	}
	return ""
}

// fillHalves is fillGo for a vector of rows.
func (g *gen) fillHalves(v isa, c codebookConstants, turned bool) {
	parameter := ""
	if turned {
		parameter = ", turn *int32"
	}
	g.function("fill"+turnedName(turned)+v.name,
		"func(table, levels *float32, places int, target, weight *float32, columns int"+parameter+")",
		"fills the table of the halves of so many columns, with a place for each level.")
	table, levels, places := g.gp("table"), g.gp("levels"), g.gp("places")
	target, weight, columns := g.gp("target"), g.gp("weight"), g.gp("columns")
	t, wt, level, e, turn, mask, four := v.reg(0), v.reg(1), v.reg(2), v.reg(3), v.reg(4), v.reg(5), v.reg(6)
	n, place, from, to, count := g.GP64(), g.GP64(), g.GP64(), g.GP64(), g.GP64()
	g.zero(v, e)
	g.VMOVUPS(e, at(table, 0))
	if turned {
		g.VBROADCASTSS(c.most, e)
		g.VMOVUPS(e, at(table, lane))
		g.VBROADCASTSS(c.four, four)
		g.VMOVUPS(at(g.gp("turn"), 0), mask)
	}
	g.MOVQ(operand.U32(1), n)
	g.Label("column")
	g.VMOVUPS(at(target, 0), t)
	g.VMOVUPS(at(weight, 0), wt)
	g.MOVQ(places, place)
	g.Comment("The first level comes last: its halves lie where the shorter ones are.")
	g.Label("level")
	g.DECQ(place)
	g.VBROADCASTSS(operand.Mem{Base: levels, Index: place, Scale: 4}, level)
	if turned {
		g.VMULPS(t, wt, turn)
		g.VMULPS(level, turn, turn)
		g.VMULPS(four, turn, turn)
		if v.bytes == 64 {
			g.VPANDD(mask, turn, turn)
		} else {
			g.VANDPS(mask, turn, turn)
		}
	}
	g.VSUBPS(level, t, level)
	g.VMULPS(level, wt, e)
	g.VMULPS(level, e, e)
	g.MOVQ(table, from)
	g.MOVQ(n, to)
	g.IMULQ(place, to)
	g.SHLQ(operand.U8(7), to) // entries
	g.ADDQ(table, to)
	g.MOVQ(n, count)
	g.Label("half")
	g.VADDPS(at(from, 0), e, v.reg(7))
	g.VMOVUPS(v.reg(7), at(to, 0))
	if turned {
		g.VMINPS(at(from, lane), turn, v.reg(8))
		g.VMOVUPS(v.reg(8), at(to, lane))
	}
	g.ADDQ(operand.I32(entry), from)
	g.ADDQ(operand.I32(entry), to)
	g.DECQ(count)
	g.JNZ(operand.LabelRef("half"))
	g.TESTQ(place, place)
	g.JNZ(operand.LabelRef("level"))
	g.IMULQ(places, n)
	g.ADDQ(operand.I32(lane), target)
	g.ADDQ(operand.I32(lane), weight)
	g.DECQ(columns)
	g.JNZ(operand.LabelRef("column"))
	if turned {
		g.Label("sum")
		g.VMOVUPS(at(table, lane), e)
		g.VADDPS(at(table, 0), e, e)
		g.VMOVUPS(e, at(table, lane))
		g.ADDQ(operand.I32(entry), table)
		g.DECQ(n)
		g.JNZ(operand.LabelRef("sum"))
	}
	g.VZEROUPPER()
	g.RET()
}

// nearestWord is nearestGo for a vector of rows. Two searches, of every other word, hide each other's latency.
func (g *gen) nearestWord(v isa, c codebookConstants, turned bool) {
	g.function("nearest"+turnedName(turned)+v.name, "func(word *int32, cost, low, high *float32, lower *uint16, runs *uint32, n int)",
		"finds the words of least cost among n > 0 runs.")
	low, high, lower, runs, n := g.gp("low"), g.gp("high"), g.gp("lower"), g.gp("runs"), g.gp("n")
	highCost, highTurned := v.reg(0), v.reg(1)
	type search struct{ e, t, least, best, number reg.VecPhysical }
	var s [2]search
	for i := range s {
		r := 2 + 5*i
		s[i] = search{v.reg(r), v.reg(r + 1), v.reg(r + 2), v.reg(r + 3), v.reg(r + 4)}
		g.VBROADCASTSS(c.most, s[i].least)
		g.zero(v, s[i].best)
	}
	step := v.reg(12) // 1 in each lane
	g.VPBROADCASTD(c.one, step)
	g.zero(v, s[0].number)
	add := func(x, to reg.VecPhysical) { g.VPADDD(x, to, to) }
	g.VMOVAPS(step, s[1].number)
	upper, count, offset := g.GP64(), g.GP64(), g.GP64()
	look := func(i int, place int) {
		g.MOVWLZX(at(lower, 2*place), offset.As32())
		at := func(disp int) operand.Mem { return operand.Mem{Base: low, Index: offset, Scale: 1, Disp: disp} }
		x := s[i]
		if turned {
			g.VADDPS(at(0), highTurned, x.e)
			g.VADDPS(at(lane), highCost, x.t)
			g.VMINPS(x.t, x.e, x.e)
		} else {
			g.VADDPS(at(0), highCost, x.e)
		}
		if v.bytes == 64 {
			k := []reg.Register{reg.K1, reg.K2}[i]
			g.VCMPPS(operand.U8(1), x.least, x.e, k)
			g.VMINPS(x.least, x.e, x.least)
			g.VMOVDQA32(x.number, k, x.best)
		} else {
			g.VCMPPS(operand.U8(1), x.least, x.e, x.t)
			g.VMINPS(x.least, x.e, x.least)
			g.VBLENDVPS(x.t, x.number, x.best, x.best)
		}
	}
	g.Label("run")
	g.MOVLQZX(at(runs, 0), upper)
	g.MOVLQZX(at(runs, 4), count)
	g.ADDQ(operand.I32(8), runs)
	g.ADDQ(high, upper)
	g.VMOVUPS(at(upper, 0), highCost)
	if turned {
		g.VMOVUPS(at(upper, lane), highTurned)
	}
	g.countdown("two", count, 2, func() {
		look(0, 0)
		look(1, 1)
		for i := range s {
			add(step, s[i].number)
			add(step, s[i].number)
		}
		g.ADDQ(operand.I32(4), lower)
	})
	g.TESTQ(count, count)
	g.JZ(operand.LabelRef("next"))
	look(0, 0)
	for i := range s {
		add(step, s[i].number)
	}
	g.ADDQ(operand.I32(2), lower)
	g.Label("next")
	g.DECQ(n)
	g.JNZ(operand.LabelRef("run"))
	g.Comment("The lesser cost, and of equal ones the first word.")
	a, b := s[0], s[1]
	if v.bytes == 64 {
		g.VCMPPS(operand.U8(1), a.least, b.least, reg.K1)
		g.VCMPPS(operand.U8(0), a.least, b.least, reg.K2)
		g.VPMINSD(a.best, b.best, reg.K2, a.best)
		g.VMOVDQA32(b.best, reg.K1, a.best)
	} else {
		g.VCMPPS(operand.U8(0), a.least, b.least, a.t)
		g.VPMINSD(a.best, b.best, a.e)
		g.VBLENDVPS(a.t, a.e, a.best, a.best)
		g.VCMPPS(operand.U8(1), a.least, b.least, a.t)
		g.VBLENDVPS(a.t, b.best, a.best, a.best)
	}
	g.VMINPS(a.least, b.least, a.least)
	g.VMOVUPS(a.least, at(g.gp("cost"), 0))
	g.VMOVUPS(a.best, at(g.gp("word"), 0))
	g.VZEROUPPER()
	g.RET()
}
