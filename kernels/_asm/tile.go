package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// tile writes the micro-kernels: each computes a rows×(2 vectors) tile of a matrix product in registers. 12 rows leave
// 32−24 AVX-512 registers for two vectors of B and the broadcast elements of A; 6 rows 16−12 AVX2 registers. With 24
// (12) independent sums the latency of the multiply-add is hidden, and a step reads 14 (8) vectors for its 24 (12)
// multiply-adds. Fewer rows serve what is left at the end of A.
func tile(g *gen) {
	for _, rows := range []int{12, 8, 4} {
		g.microKernel(fmt.Sprintf("gemmF32AVX512x%d", rows), avx512, rows, false)
		g.microKernel(fmt.Sprintf("gemmBF16x%d", rows), avx512, rows, true)
	}
	for _, rows := range []int{6, 3} {
		g.microKernel(fmt.Sprintf("gemmF32AVX2x%d", rows), avx2, rows, false)
	}
}

func (g *gen) microKernel(name string, v isa, rows int, pairs bool) {
	const vecs = 2
	const prefetch = 1024 // bytes ahead in B, which comes from L2: 8 to 16 steps
	sig := "func(k int, a *uint32, rowA, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool, " +
		"next *uint32, stepNext int)"
	doc := []string{fmt.Sprintf("sets C = alpha·A·B, or C += alpha·A·B if add; C is %d×%d.", rows, vecs*v.lanes())}
	if pairs {
		doc = append(doc, "An element of A or B is two bfloat16 values, multiplied with the same two of the other and added.")
	}
	doc = append(doc, "",
		"A's element (i,p) is rowA·i+stepA·p bytes from a, B's step p is contiguous, C's row i rowC·i bytes from c.",
		"k > 0 is the number of steps. Step p brings what is stepNext·p bytes from next into the L2 cache.")
	g.function(name, sig, doc...)

	k, a, rowA, stepA, b := g.gp("k"), g.gp("a"), g.gp("rowA"), g.gp("stepA"), g.gp("b")
	c, rowC := g.gp("c"), g.gp("rowC")
	next, stepNext := g.gp("next"), g.gp("stepNext")
	acc := func(i, j int) reg.VecPhysical { return v.reg(vecs*i + j) }
	vecB := func(j int) reg.VecPhysical { return v.reg(vecs*rows + j) }
	temps := min(4, v.count()-vecs*rows-vecs)
	temp := func(i int) reg.VecPhysical { return v.reg(vecs*rows + vecs + i%temps) }

	g.Comment("Bring C near while the sums run.")
	p := g.GP64()
	g.MOVQ(c, p)
	for range rows {
		g.PREFETCHT0(at(p, 0))
		if vecs*v.bytes > 64 {
			g.PREFETCHT0(at(p, vecs*v.bytes-1))
		}
		g.ADDQ(rowC, p)
	}
	for i := range rows {
		for j := range vecs {
			g.zero(v, acc(i, j))
		}
	}
	row3, row5 := g.GP64(), g.GP64()
	g.LEAQ(operand.Mem{Base: rowA, Index: rowA, Scale: 2}, row3)
	g.LEAQ(operand.Mem{Base: rowA, Index: rowA, Scale: 4}, row5)
	bases := []reg.Register{a}
	if rows > 6 {
		a6 := g.GP64()
		g.LEAQ(operand.Mem{Base: a, Index: row3, Scale: 2}, a6)
		bases = append(bases, a6)
	}
	elementA := func(i int) operand.Mem {
		base := bases[i/6]
		switch i % 6 {
		case 0:
			return operand.Mem{Base: base}
		case 3:
			return operand.Mem{Base: base, Index: row3, Scale: 1}
		case 5:
			return operand.Mem{Base: base, Index: row5, Scale: 1}
		default:
			return operand.Mem{Base: base, Index: rowA, Scale: uint8(i % 6)}
		}
	}
	g.Label("step")
	for j := range vecs {
		g.VMOVUPS(at(b, j*v.bytes), vecB(j))
	}
	for d := 0; d < vecs*v.bytes; d += 64 {
		g.PREFETCHT0(at(b, prefetch+d))
	}
	for i := range rows {
		g.VBROADCASTSS(elementA(i), temp(i))
		for j := range vecs {
			if pairs {
				g.vdpbf16ps(vecB(j), temp(i), acc(i, j))
			} else {
				g.VFMADD231PS(vecB(j), temp(i), acc(i, j))
			}
		}
	}
	g.PREFETCHT1(at(next, 0))
	g.ADDQ(stepNext, next)
	for _, base := range bases {
		g.ADDQ(stepA, base)
	}
	g.ADDQ(operand.I32(int32(vecs*v.bytes)), b)
	g.DECQ(k)
	g.JNZ(operand.LabelRef("step"))

	alpha := vecB(0)
	g.VBROADCASTSS(g.param("alpha"), alpha)
	add := g.Load(g.Param("add"), g.GP8())
	g.TESTB(add, add)
	g.JZ(operand.LabelRef("store"))
	for i := range rows {
		for j := range vecs {
			g.VMOVUPS(at(c, j*v.bytes), temp(j))
			g.VFMADD231PS(acc(i, j), alpha, temp(j))
			g.VMOVUPS(temp(j), at(c, j*v.bytes))
		}
		g.ADDQ(rowC, c)
	}
	g.VZEROUPPER()
	g.RET()
	g.Label("store")
	for i := range rows {
		for j := range vecs {
			g.VMULPS(acc(i, j), alpha, acc(i, j))
			g.VMOVUPS(acc(i, j), at(c, j*v.bytes))
		}
		g.ADDQ(rowC, c)
	}
	g.VZEROUPPER()
	g.RET()
}
