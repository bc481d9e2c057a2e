package main

import (
	"encoding/binary"
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Tiles of an AMX micro-kernel: two halves of C's columns for each 16 of its rows, then A's rows and B's columns. All hold 16
// steps of bfloat16 pairs at a time.
const (
	amxSteps = 16
	tileC    = 0
	tileA    = 4
	tileB    = 6
)

// amx writes the micro-kernels of AMX, 16 and 32 rows by 32 columns. 32 rows take four tiles of sums, whose chains of dependent
// products hide an instruction's 52 cycles of latency in its 16 of throughput, and load a tile for each product.
func amx(g *gen) {
	config := g.amxConfig("amxConfig")
	for _, rows := range []int{32, 16} {
		g.amxKernel(fmt.Sprintf("gemmAMXx%d", rows), rows, config)
	}
}

func (g *gen) amxKernel(name string, rows int, config operand.Mem) {
	g.Function(name) // its frame is large: the stack is checked
	g.SignatureExpr("func(strips, k int, a *uint32, rowA int, b *uint32, c *float32, rowC int, alpha float32, add bool, next *uint32, stepNext int)")
	g.Pragma("noescape")
	g.Doc(name+fmt.Sprintf(" is gemmBF16x12 for strips C's of %d×32, side by side, whose strips of B follow each other.", rows),
		"Steps of a row of A follow each other too: stepA is 4.")

	halves := rows / 16
	k, a, rowA, b := reg.RCX, reg.RSI, reg.RDI, reg.RDX
	c, rowC, next, stepNext := reg.R8, reg.R9, reg.R10, reg.R11
	stride, a16, sums, cfg, rest, strips := reg.R12, reg.R13, reg.RBX, reg.RAX, reg.R15, reg.R14
	for _, p := range []struct {
		name string
		r    reg.GPPhysical
	}{{"strips", strips}, {"k", k}, {"rowA", rowA}, {"b", b}, {"c", c}, {"rowC", rowC}, {"next", next}, {"stepNext", stepNext}} {
		g.Load(g.Param(p.name), p.r)
	}
	g.MOVQ(operand.I32(128), stride) // of B's steps, and of the sums' rows
	local := g.AllocLocal(rows*128 + 64)
	g.LEAQ(local, sums)
	g.ADDQ(operand.I32(63), sums)
	g.ANDQ(operand.I32(-64), sums)

	step := func() {
		g.tileLoad(tileA, a, rowA, 0)
		g.tileLoad(tileB, b, stride, 0)
		g.tdpbf16ps(tileC, tileA, tileB)
		g.tileLoad(tileB+1, b, stride, 64)
		g.tdpbf16ps(tileC+1, tileA, tileB+1)
		if halves > 1 {
			g.tileLoad(tileA+1, a16, rowA, 0)
			g.tdpbf16ps(tileC+2, tileA+1, tileB)
			g.tdpbf16ps(tileC+3, tileA+1, tileB+1)
		}
	}
	// each calls f with C's tiles and where their sums are kept: 16 rows are 2048 bytes.
	each := func(f func(tile uint8, disp int8)) {
		for h := range halves {
			if h > 0 {
				g.ADDQ(operand.I32(2048), sums)
			}
			f(uint8(tileC+2*h), 0)
			f(uint8(tileC+2*h+1), 64)
		}
		if halves > 1 {
			g.SUBQ(operand.I32(2048), sums)
		}
	}
	load := func(tile uint8, disp int8) { g.tileLoad(tile, sums, stride, disp) }
	save := func(tile uint8, disp int8) { g.tileStore(tile, sums, stride, disp) }
	whole := func() { // tiles of 16 steps
		g.LEAQ(config.Offset(64*(amxSteps-1)), cfg)
		g.tileConfig(cfg)
	}
	part := func() { // tiles of rest steps, 1 to 15
		g.LEAQ(config.Offset(-64), cfg)
		g.SHLQ(operand.U8(6), rest)
		g.ADDQ(rest, cfg)
		g.SHRQ(operand.U8(6), rest)
		g.tileConfig(cfg)
	}

	g.MOVQ(k, rest)
	g.ANDQ(operand.I32(amxSteps-1), rest)
	g.SHRQ(operand.U8(4), k)
	g.JZ(operand.LabelRef("few"))
	whole()
	g.JMP(operand.LabelRef("strip"))
	g.Label("few")
	part()

	g.Label("strip")
	g.Load(g.Param("k"), k)
	g.Load(g.Param("a"), a)
	g.MOVQ(rowA, a16)
	g.SHLQ(operand.U8(4), a16)
	g.ADDQ(a, a16)
	each(func(tile uint8, _ int8) { g.tileZero(tile) })
	g.SHRQ(operand.U8(4), k)
	g.JZ(operand.LabelRef("rest"))
	g.Label("steps")
	step()
	for range 4 { // a line is brought by four steps at least
		g.PREFETCHT1(at(next, 0))
		g.LEAQ(operand.Mem{Base: next, Index: stepNext, Scale: 4}, next)
	}
	g.ADDQ(operand.I32(4*amxSteps), a)
	g.ADDQ(operand.I32(4*amxSteps), a16)
	g.ADDQ(operand.I32(128*amxSteps), b)
	g.DECQ(k)
	g.JNZ(operand.LabelRef("steps"))
	each(save)
	g.TESTQ(rest, rest)
	g.JZ(operand.LabelRef("summed"))

	g.Comment("Tiles of fewer steps are of another configuration, and loading it clears all.")
	part()
	each(load)
	step()
	each(save)
	whole()
	g.JMP(operand.LabelRef("next"))
	g.Label("rest")
	step()
	each(save)
	g.Label("next")
	g.MOVQ(rest, cfg)
	g.SHLQ(operand.U8(7), cfg)
	g.ADDQ(cfg, b)

	g.Label("summed")
	z := avx512.reg
	alpha, row := z(0), a
	g.VBROADCASTSS(g.param("alpha"), alpha)
	add := g.Load(g.Param("add"), reg.AL)
	g.MOVQ(c, row)
	g.MOVQ(operand.I32(int32(rows/4)), k)
	g.TESTB(add, add)
	g.JZ(operand.LabelRef("store"))
	fourRows := func(add bool) {
		for i := range 4 {
			for j := range 2 {
				v := z(1 + 2*i + j)
				if add {
					g.VMOVUPS(at(row, 64*j), v)
					g.VFMADD231PS(at(sums, 128*i+64*j), alpha, v)
				} else {
					g.VMULPS(at(sums, 128*i+64*j), alpha, v)
				}
				g.VMOVUPS(v, at(row, 64*j))
			}
			g.ADDQ(rowC, row)
		}
		g.ADDQ(operand.I32(4*128), sums)
		g.DECQ(k)
	}
	g.Label("add")
	fourRows(true)
	g.JNZ(operand.LabelRef("add"))
	g.JMP(operand.LabelRef("stored"))
	g.Label("store")
	fourRows(false)
	g.JNZ(operand.LabelRef("store"))
	g.Label("stored")
	g.SUBQ(operand.I32(int32(rows*128)), sums)
	g.ADDQ(operand.I32(128), c)
	g.DECQ(strips)
	g.JNZ(operand.LabelRef("strip"))
	g.tileRelease()
	g.VZEROUPPER()
	g.RET()
}

// amxConfig returns LDTILECFG's operands for r steps, 1 to 16, at 64·(r−1): palette 1, then bytes a row and rows of each tile.
func (g *gen) amxConfig(name string) operand.Mem {
	config := g.StaticGlobal(name)
	g.DataAttributes(rodata)
	for r := 1; r <= amxSteps; r++ {
		var c [64]byte
		c[0] = 1
		for t := range 8 {
			rows, bytes := 16, 64
			switch {
			case t >= tileB:
				rows = r
			case t >= tileA:
				bytes = 4 * r
			}
			c[16+2*t], c[48+t] = byte(bytes), byte(rows)
		}
		for i := 0; i < 64; i += 8 {
			g.AddDatum(64*(r-1)+i, operand.U64(binary.LittleEndian.Uint64(c[i:])))
		}
	}
	return config
}
