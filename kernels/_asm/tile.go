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

// microKernel writes loops of four steps a turn, of eight over AVX2's rows of A. A step of 6×16 is 20 instructions, which a core issues
// in the six cycles that the multiply-adds take, and what counts and advances is shared by eight: where another thread has half of the
// core's front end, every instruction is time. So AVX2 leaves B, a line a step, to the hardware's prefetcher.
func (g *gen) microKernel(name string, v isa, rows int, pairs bool) {
	const vecs = 2
	const prefetch = 1024 // bytes ahead in B, which comes from L2: 8 steps of 32 columns
	sig := "func(strips, k int, a *uint32, rowA, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool, " +
		"next *uint32, stepNext int)"
	doc := []string{fmt.Sprintf("sets C = alpha·A·B, or C += alpha·A·B if add, for strips > 0 C's of %d×%d, side by side, whose strips of B", rows, vecs*v.lanes()),
		"follow each other."}
	if pairs {
		doc = append(doc, "An element of A or B is two bfloat16 values, multiplied with the same two of the other and added.")
	}
	doc = append(doc, "",
		"A's element (i,p) is rowA·i+stepA·p bytes from a, and one of rowA and stepA is 4. B's step p is contiguous, C's row i rowC·i",
		"bytes from c. k > 0 is the number of steps. Each brings what is stepNext bytes after what the last one brought, at first",
		"next, into the L2 cache.")
	g.function(name, sig, doc...)

	rowA, stepA, b := g.gp("rowA"), g.gp("stepA"), g.gp("b")
	c, rowC := g.gp("c"), g.gp("rowC")
	next, stepNext := g.gp("next"), g.gp("stepNext")
	k, a, a6, three, five := g.GP64(), g.GP64(), g.GP64(), g.GP64(), g.GP64()
	acc := func(i, j int) reg.VecPhysical { return v.reg(vecs*i + j) }
	vecB := func(j int) reg.VecPhysical { return v.reg(vecs*rows + j) }
	temps := min(4, v.count()-vecs*rows-vecs)
	temp := func(i int) reg.VecPhysical { return v.reg(vecs*rows + vecs + i%temps) }
	// times is the memory n times the distance d after what base and disp say; three and five are 3·d and 5·d.
	times := func(base reg.Register, disp, n int, d reg.Register) operand.Mem {
		m := at(base, disp)
		switch n {
		case 0:
		case 3:
			m.Index, m.Scale = three, 1
		case 5:
			m.Index, m.Scale = five, 1
		default:
			m.Index, m.Scale = d, uint8(n)
		}
		return m
	}

	g.Label("strip")
	g.Load(g.Param("k"), k)
	g.Load(g.Param("a"), a)
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
	unrolled := 4
	if v.bytes == 32 {
		unrolled = 8
	}
	// steps multiplies n steps and asks for some of B and of next.
	steps := func(n int, elementA func(i, u int) operand.Mem) {
		for u := range n {
			for j := range vecs {
				g.VMOVUPS(at(b, (vecs*u+j)*v.bytes), vecB(j))
			}
			for d := 0; d < vecs*v.bytes && v.bytes > 32; d += 64 {
				g.PREFETCHT0(at(b, prefetch+vecs*u*v.bytes+d))
			}
			for i := range rows {
				g.VBROADCASTSS(elementA(i, u), temp(i))
				for j := range vecs {
					if pairs {
						g.vdpbf16ps(vecB(j), temp(i), acc(i, j))
					} else {
						g.VFMADD231PS(vecB(j), temp(i), acc(i, j))
					}
				}
			}
		}
		g.advance(n*vecs*v.bytes, b)
		by := min(n, 4) // steps that bring a line at most
		if rows > 6 {
			by = min(n, 2)
		}
		for range n / by {
			g.PREFETCHT1(at(next, 0))
			g.LEAQ(operand.Mem{Base: next, Index: stepNext, Scale: uint8(by)}, next)
		}
	}
	// loop goes through all steps.
	loop := func(name string, unrolled int, elementA func(i, u int) operand.Mem, advance func(n int)) {
		g.SUBQ(operand.I32(unrolled), k)
		g.JL(operand.LabelRef(name + "_few"))
		g.Label(name)
		steps(unrolled, elementA)
		advance(unrolled)
		g.SUBQ(operand.I32(unrolled), k)
		g.JGE(operand.LabelRef(name))
		g.Label(name + "_few")
		g.ADDQ(operand.I32(unrolled), k)
		g.JZ(operand.LabelRef("summed"))
		g.Label(name + "_one")
		steps(1, elementA)
		advance(1)
		g.DECQ(k)
		g.JNZ(operand.LabelRef(name + "_one"))
	}
	g.CMPQ(stepA, operand.I32(4))
	g.JNE(operand.LabelRef("columns"))
	g.Comment("A's rows: steps follow each other.")
	g.LEAQ(operand.Mem{Base: rowA, Index: rowA, Scale: 2}, three)
	g.LEAQ(operand.Mem{Base: rowA, Index: rowA, Scale: 4}, five)
	if rows > 6 {
		g.LEAQ(operand.Mem{Base: a, Index: three, Scale: 2}, a6)
	}
	loop("row", unrolled, func(i, u int) operand.Mem {
		if i >= 6 {
			return times(a6, 4*u, i-6, rowA)
		}
		return times(a, 4*u, i, rowA)
	}, func(n int) {
		g.advance(4*n, a)
		if rows > 6 {
			g.advance(4*n, a6)
		}
	})
	g.JMP(operand.LabelRef("summed"))
	g.Label("columns")
	g.Comment("A's columns: rows follow each other.")
	g.LEAQ(operand.Mem{Base: stepA, Index: stepA, Scale: 2}, three)
	loop("column", 4, func(i, u int) operand.Mem { return times(a, 4*i, u, stepA) },
		func(n int) { g.LEAQ(operand.Mem{Base: a, Index: stepA, Scale: uint8(n)}, a) })

	g.Label("summed")
	alpha := vecB(0)
	g.VBROADCASTSS(g.param("alpha"), alpha)
	add := g.Load(g.Param("add"), g.GP8())
	g.MOVQ(c, p)
	g.TESTB(add, add)
	g.JZ(operand.LabelRef("store"))
	for i := range rows {
		for j := range vecs {
			g.VMOVUPS(at(p, j*v.bytes), temp(j))
			g.VFMADD231PS(acc(i, j), alpha, temp(j))
			g.VMOVUPS(temp(j), at(p, j*v.bytes))
		}
		g.ADDQ(rowC, p)
	}
	g.JMP(operand.LabelRef("stored"))
	g.Label("store")
	for i := range rows {
		for j := range vecs {
			g.VMULPS(acc(i, j), alpha, acc(i, j))
			g.VMOVUPS(acc(i, j), at(p, j*v.bytes))
		}
		g.ADDQ(rowC, p)
	}
	g.Label("stored")
	g.advance(vecs*v.bytes, c)
	g.DECQ(g.param("strips"))
	g.JNZ(operand.LabelRef("strip"))
	g.VZEROUPPER()
	g.RET()
}
