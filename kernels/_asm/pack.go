package main

import (
	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// pack writes what brings matrices into the micro-kernels' layout.
func pack(g *gen) {
	g.transpose16()
	g.transpose8()
	g.copyStrip(avx512)
	g.copyStrip(avx2)
	g.pairStrip()
	g.roundBF16()
	g.prefetch()
}

// transpose16 transposes by four rounds of exchanges: of neighbouring words, pairs, quadruples and octets.
func (g *gen) transpose16() {
	g.function("TransposeAVX512", "func(dst *uint32, rowDst int, src *uint32, rowSrc, n int)",
		"sets dst[j][i] = src[i][j] for i < 16 and j < 16·n; rows are rowDst and rowSrc bytes apart.")
	dst, rowDst, src, rowSrc, n := g.gp("dst"), g.gp("rowDst"), g.gp("src"), g.gp("rowSrc"), g.gp("n")
	z := avx512.reg
	p := g.GP64()
	g.countdown("block", n, 1, func() {
		g.MOVQ(src, p)
		for i := range 16 {
			g.VMOVUPS(at(p, 0), z(i))
			if i < 15 {
				g.ADDQ(rowSrc, p)
			}
		}
		// Words: rows 2i and 2i+1 give (2i, 2i+1) pairs of columns.
		for i := 0; i < 16; i += 2 {
			g.VUNPCKLPS(z(i+1), z(i), z(16+i))
			g.VUNPCKHPS(z(i+1), z(i), z(16+i+1))
		}
		// Pairs: z(4i+c), of rows 4i to 4i+3, holds column c of each 128-bit lane.
		for i := 0; i < 16; i += 4 {
			g.VUNPCKLPD(z(16+i+2), z(16+i), z(i))
			g.VUNPCKHPD(z(16+i+2), z(16+i), z(i+1))
			g.VUNPCKLPD(z(16+i+3), z(16+i+1), z(i+2))
			g.VUNPCKHPD(z(16+i+3), z(16+i+1), z(i+3))
		}
		// Lanes: rows 0–3 with 4–7, and 8–11 with 12–15; then those two.
		for c := range 4 {
			for h := 0; h < 2; h++ {
				g.VSHUFF32X4(operand.U8(0x88), z(8*h+4+c), z(8*h+c), z(16+8*h+c))
				g.VSHUFF32X4(operand.U8(0xdd), z(8*h+4+c), z(8*h+c), z(16+8*h+4+c))
			}
		}
		for c := range 4 {
			g.VSHUFF32X4(operand.U8(0x88), z(16+8+c), z(16+c), z(c))
			g.VSHUFF32X4(operand.U8(0xdd), z(16+8+c), z(16+c), z(8+c))
			g.VSHUFF32X4(operand.U8(0x88), z(16+8+4+c), z(16+4+c), z(4+c))
			g.VSHUFF32X4(operand.U8(0xdd), z(16+8+4+c), z(16+4+c), z(12+c))
		}
		for j := range 16 {
			g.VMOVUPS(z(j), at(dst, 0))
			g.ADDQ(rowDst, dst)
		}
		g.ADDQ(operand.I32(64), src)
	})
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) transpose8() {
	g.function("TransposeAVX2", "func(dst *uint32, rowDst int, src *uint32, rowSrc, n int)",
		"sets dst[j][i] = src[i][j] for i < 8 and j < 8·n; rows are rowDst and rowSrc bytes apart.")
	dst, rowDst, src, rowSrc, n := g.gp("dst"), g.gp("rowDst"), g.gp("src"), g.gp("rowSrc"), g.gp("n")
	y := avx2.reg
	// Rows i and i+4 are loaded into the lanes of one register, which no exchange of lanes need follow.
	three, four := g.GP64(), g.GP64()
	g.LEAQ(operand.Mem{Base: rowSrc, Index: rowSrc, Scale: 2}, three)
	g.countdown("block", n, 1, func() {
		g.LEAQ(operand.Mem{Base: src, Index: rowSrc, Scale: 4}, four)
		row := func(base reg.Register, i, disp int) operand.Mem {
			m := at(base, disp)
			switch i {
			case 1, 2:
				m.Index, m.Scale = rowSrc, uint8(i)
			case 3:
				m.Index, m.Scale = three, 1
			}
			return m
		}
		for h := range 2 {
			for i := range 4 {
				g.VMOVUPS(row(src, i, 16*h), y(4*h+i).AsX())
				g.VINSERTF128(operand.U8(1), row(four, i, 16*h), y(4*h+i), y(4*h+i))
			}
		}
		for i := 0; i < 8; i += 2 {
			g.VUNPCKLPS(y(i+1), y(i), y(8+i))
			g.VUNPCKHPS(y(i+1), y(i), y(8+i+1))
		}
		for i := 0; i < 8; i += 4 {
			g.VUNPCKLPD(y(8+i+2), y(8+i), y(i))
			g.VUNPCKHPD(y(8+i+2), y(8+i), y(i+1))
			g.VUNPCKLPD(y(8+i+3), y(8+i+1), y(i+2))
			g.VUNPCKHPD(y(8+i+3), y(8+i+1), y(i+3))
		}
		for j := range 8 {
			g.VMOVUPS(y(j), at(dst, 0))
			g.ADDQ(rowDst, dst)
		}
		g.ADDQ(operand.I32(32), src)
	})
	g.VZEROUPPER()
	g.RET()
}

// exchange8 leaves in registers 8 to 15 the columns of eight rows, which registers 0 to 7 hold.
func (g *gen) exchange8() {
	y := avx2.reg
	for i := 0; i < 8; i += 2 {
		g.VUNPCKLPS(y(i+1), y(i), y(8+i))
		g.VUNPCKHPS(y(i+1), y(i), y(8+i+1))
	}
	for i := 0; i < 8; i += 4 {
		g.VUNPCKLPD(y(8+i+2), y(8+i), y(i))
		g.VUNPCKHPD(y(8+i+2), y(8+i), y(i+1))
		g.VUNPCKLPD(y(8+i+3), y(8+i+1), y(i+2))
		g.VUNPCKHPD(y(8+i+3), y(8+i+1), y(i+3))
	}
	for c := range 4 {
		g.VPERM2F128(operand.U8(0x20), y(4+c), y(c), y(8+c))
		g.VPERM2F128(operand.U8(0x31), y(4+c), y(c), y(12+c))
	}
}

func (g *gen) copyStrip(v isa) {
	g.function("CopyStrip"+v.name, "func(dst *uint32, src *uint32, rowSrc, n int)",
		"copies the first two vectors of n rows, rowSrc bytes apart in src, contiguous in dst.")
	dst, src, rowSrc, n := g.gp("dst"), g.gp("src"), g.gp("rowSrc"), g.gp("n")
	g.countdown("row", n, 1, func() {
		for j := range 2 {
			g.VMOVUPS(at(src, j*v.bytes), v.reg(j))
			g.VMOVUPS(v.reg(j), at(dst, j*v.bytes))
		}
		g.ADDQ(rowSrc, src)
		g.ADDQ(operand.I32(int32(2*v.bytes)), dst)
	})
	g.VZEROUPPER()
	g.RET()
}

// pairStrip rounds as roundBF16 does. The first row's value is the lower half of each word.
func (g *gen) pairStrip() {
	g.function("PairStrip", "func(dst *uint32, src *uint32, rowSrc, n int)",
		"makes bfloat16 pairs of the first 32 columns of n times two rows, rowSrc bytes apart in src, contiguous in dst.")
	dst, src, rowSrc, n := g.gp("dst"), g.gp("src"), g.gp("rowSrc"), g.gp("n")
	z := avx512.reg
	g.countdown("pair", n, 1, func() {
		for row := range 2 {
			for j := range 2 {
				v := z(2*row + j)
				g.VMOVUPS(at(src, 64*j), v)
				g.vcvtneps2bf16(v, v)
				g.VPMOVZXWD(v.AsY(), v)
			}
			g.ADDQ(rowSrc, src)
		}
		for j := range 2 {
			g.VPSLLD(operand.U8(16), z(2+j), z(2+j))
			g.VPORD(z(j), z(2+j), z(j))
			g.VMOVUPS(z(j), at(dst, 64*j))
		}
		g.ADDQ(operand.I32(128), dst)
	})
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) roundBF16() {
	g.function("RoundBF16", "func(dst *uint16, src *float32, n int)",
		"sets dst[i] to src[i] rounded to the nearest bfloat16, ties to even; n is a multiple of 32.",
		"As AVX512_BF16 has it, subnormal values become zero.")
	dst, src, n := g.gp("dst"), g.gp("src"), g.gp("n")
	z := avx512.reg
	g.countdown("block", n, 32, func() {
		g.VMOVUPS(at(src, 0), z(0))
		g.VMOVUPS(at(src, 64), z(1))
		g.vcvtneps2bf16(z(0), z(2))
		g.vcvtneps2bf16(z(1), z(3))
		g.VMOVUPS(z(2).AsY(), at(dst, 0))
		g.VMOVUPS(z(3).AsY(), at(dst, 32))
		g.ADDQ(operand.I32(128), src)
		g.ADDQ(operand.I32(64), dst)
	})
	g.VZEROUPPER()
	g.RET()
}

func (g *gen) prefetch() {
	g.function("Prefetch", "func(p *byte, n int)", "asks for the lines of n > 0 bytes; p may point anywhere.",
		"They come into the L2 cache, which waits for more lines at a time than L1.")
	p, n := g.gp("p"), g.gp("n")
	g.Label("line")
	g.PREFETCHT1(at(p, 0))
	g.ADDQ(operand.I32(64), p)
	g.SUBQ(operand.I32(64), n)
	g.JG(operand.LabelRef("line"))
	g.RET()
}
