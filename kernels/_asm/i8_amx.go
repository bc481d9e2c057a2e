package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// i8AMX writes the products of i8 for AMX: of whole rows, 32 by 32, whose sums stay in four tiles, and of rows in groups of 32 columns,
// 16 by 32, whose sums go through vectors group after group, as in q8.
func i8AMX(g *gen) {
	g.int8RowsAMX()
	g.int8GroupsAMX()
}

func (g *gen) int8RowsAMX() {
	config := g.tileShapes("int8Config", [][2]byte{{16, 64}, {16, 64}, {16, 64}, {16, 64}, {16, 64}, {16, 64}, {16, 64}})
	g.Function("int8RowsAMX") // its frame is large: the stack is checked
	g.SignatureExpr("func(panels, k int, x *int8, stride int, w *uint32, scale, c *float32, rowC int, step *float32)")
	g.Pragma("noescape")
	g.Doc("int8RowsAMX sets C = step·scale·X·Wᵀ for each of a number of panels of 32 rows of X, which are stride bytes apart; C is 32×32.",
		"k is the number of steps of 64 columns. w has four columns after four, and of those each output's. C's row i is rowC·i bytes",
		"from c, the next panel's C after this one's; panels and k are positive.")
	const tileA, tileB = 4, 5
	x, stride, w, steps := reg.RSI, reg.R12, reg.RDX, reg.RCX
	x16, row128, sums, cfg := reg.R13, reg.RDI, reg.RBX, reg.RAX
	dst, rowC, step := reg.R8, reg.R9, reg.R10
	g.LEAQ(g.AllocLocal(32*128+64), sums)
	g.ADDQ(operand.I32(63), sums)
	g.ANDQ(operand.I32(-64), sums)
	g.LEAQ(config, cfg)
	g.tileConfig(cfg)
	g.MOVQ(operand.I32(128), row128)
	g.Load(g.Param("stride"), stride)
	g.Load(g.Param("c"), dst)
	g.Load(g.Param("rowC"), rowC)
	g.Load(g.Param("step"), step)
	g.Label("panel")
	g.Load(g.Param("x"), x)
	g.MOVQ(stride, x16)
	g.SHLQ(operand.U8(4), x16)
	g.ADDQ(x, x16)
	g.Load(g.Param("w"), w)
	g.Load(g.Param("k"), steps)
	for t := range 4 {
		g.tileZero(uint8(t))
	}
	g.Label("steps")
	g.tileLoad(tileA, x, stride, 0)
	g.tileLoad(tileB, w, row128, 0)
	g.tdpbssd(0, tileA, tileB)
	g.tileLoad(tileB+1, w, row128, 64)
	g.tdpbssd(1, tileA, tileB+1)
	g.tileLoad(tileA, x16, stride, 0)
	g.tdpbssd(2, tileA, tileB)
	g.tdpbssd(3, tileA, tileB+1)
	g.advance(64, x, x16)
	g.advance(16*128, w)
	g.DECQ(steps)
	g.JNZ(operand.LabelRef("steps"))
	for h := range 2 {
		g.tileStore(uint8(2*h), sums, row128, 0)
		g.tileStore(uint8(2*h+1), sums, row128, 64)
		if h == 0 {
			g.ADDQ(operand.I32(16*128), sums)
		}
	}
	g.SUBQ(operand.I32(16*128), sums)
	z := avx512.reg
	scale := w
	g.Load(g.Param("scale"), scale)
	g.VMOVUPS(at(scale, 0), z(0))
	g.VMOVUPS(at(scale, 64), z(1))
	const rows = 4 // at a time
	g.MOVQ(operand.I32(32/rows), steps)
	g.Label("scale")
	for i := range rows {
		for j := range 2 {
			v := z(2 + 2*i + j)
			g.VCVTDQ2PS(at(sums, 128*i+64*j), v)
			g.VMULPS(z(j), v, v)
			g.VMULPS_BCST(at(step, 4*i), v, v)
			g.VMOVUPS(v, at(dst, 64*j))
		}
		g.ADDQ(rowC, dst)
	}
	g.advance(rows*128, sums)
	g.advance(rows*4, step)
	g.DECQ(steps)
	g.JNZ(operand.LabelRef("scale"))
	g.SUBQ(operand.I32(32*128), sums)
	g.Load(g.Param("x"), x)
	g.SHLQ(operand.U8(5), stride)
	g.ADDQ(stride, x)
	g.SHRQ(operand.U8(5), stride)
	g.MOVQ(x, g.param("x"))
	g.DECQ(g.param("panels"))
	g.JNZ(operand.LabelRef("panel"))
	g.tileRelease()
	g.VZEROUPPER()
	g.RET()
}

// int8GroupsAMX rounds a group's sum, its product with the scale, and each addition of one.
func (g *gen) int8GroupsAMX() {
	p := g.groupProducts("int8GroupsConfig")
	g.Function("int8GroupsAMX") // its frame is large: the stack is checked
	g.SignatureExpr("func(panels, groups int, x *int8, stride int, w *uint32, scale, c *float32, rowC int, step *float32)")
	g.Pragma("noescape")
	g.Doc("int8GroupsAMX is int8RowsAMX for panels of 16 rows, and groups of 32 columns: scale has those of 32 outputs for each, one group",
		"after the other. panels and groups are positive.")
	z := avx512.reg
	c, scale := z, z(byteTokens)
	sum := func(t int) reg.VecPhysical { return z(byteTokens + 1 + t%8) }
	scales, groups, dst, rowC, half, row := reg.R8, reg.RAX, reg.R9, reg.R10, reg.R15, reg.RDI
	p.begin(g)
	g.Load(g.Param("stride"), p.rowX)
	g.Load(g.Param("c"), dst)
	g.Load(g.Param("rowC"), rowC)
	g.Label("panel")
	g.XORQ(half, half)
	g.Label("half")
	g.Load(g.Param("x"), p.x)
	g.Load(g.Param("w"), p.w)
	g.Load(g.Param("scale"), scales)
	g.ADDQ(half, p.w)
	g.ADDQ(half, scales)
	g.Load(g.Param("groups"), groups)
	g.MOVQ(groups, p.left)
	for t := range byteTokens {
		g.zero(avx512, c(t))
	}
	for _, name := range []string{"first", "second"} {
		p.multiply(g, name, q8Group)
	}
	g.Label("group")
	p.multiply(g, "scale", q8Group)
	g.VMOVUPS(at(scales, 0), scale)
	for t := range byteTokens {
		g.VCVTDQ2PS(at(p.get, 64*t), sum(t))
		g.VMULPS(scale, sum(t), sum(t))
		g.VADDPS(sum(t), c(t), c(t))
	}
	g.advance(4*q8Outputs, scales)
	p.turn(g, p.get)
	g.DECQ(groups)
	g.JNZ(operand.LabelRef("group"))
	step := scales
	g.Load(g.Param("step"), step)
	g.LEAQ(operand.Mem{Base: dst, Index: half, Scale: 1}, row)
	for t := range byteTokens {
		g.VMULPS_BCST(at(step, 4*t), c(t), c(t))
		g.VMOVUPS(c(t), at(row, 0))
		g.ADDQ(rowC, row)
	}
	g.XORQ(operand.I32(64), half)
	g.JNZ(operand.LabelRef("half"))
	g.Load(g.Param("x"), p.x)
	g.MOVQ(p.rowX, groups)
	g.SHLQ(operand.U8(4), groups)
	g.ADDQ(groups, p.x)
	g.MOVQ(p.x, g.param("x"))
	g.ADDQ(operand.I32(4*byteTokens), step)
	g.MOVQ(step, g.param("step"))
	g.MOVQ(row, dst)
	g.SUBQ(operand.I32(64), dst)
	g.DECQ(g.param("panels"))
	g.JNZ(operand.LabelRef("panel"))
	g.tileRelease()
	g.VZEROUPPER()
	g.RET()
}
