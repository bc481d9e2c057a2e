package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// i8 writes the products of one row of W with one or four rows of X, all of signed bytes. Bytes are widened to 16
// bits, whose products VPMADDWD adds in pairs to 32 bits: nothing saturates, unlike VPMADDUBSW, and no offset makes one
// side unsigned, unlike VPDPBUSD.
func i8(g *gen) {
	for _, v := range []isa{avx2, avx512} {
		for _, rows := range []int{1, 4} {
			g.int8Row(v, rows)
			g.int8Groups(v, rows)
		}
	}
}

// bytesPerStep is how many bytes a vector of 16-bit elements takes.
func bytesPerStep(v isa) int { return v.bytes / 2 }

// The vectors of rows r < 4: sums from register 0, float32 sums of groups from 4; w is in 8, its scale in 9.
const (
	int8Sums   = 0
	int8Floats = 4
	int8W      = 8
	int8Scale  = 9
	int8X      = 10
)

// int8Step adds the products of one vector of W and those of X's rows, at the pointers, to the sums.
func (g *gen) int8Step(v isa, w reg.Register, x []reg.Register, disp int) {
	g.VPMOVSXBW(at(w, disp), v.reg(int8W))
	for i := range x {
		g.VPMOVSXBW(at(x[i], disp), v.reg(int8X+i))
		g.VPMADDWD(v.reg(int8W), v.reg(int8X+i), v.reg(int8X+i))
		g.VPADDD(v.reg(int8X+i), v.reg(int8Sums+i), v.reg(int8Sums+i))
	}
}

// int8Rows loads the pointers to X's rows.
func (g *gen) int8Rows(rows int) []reg.Register {
	x := []reg.Register{g.gp("x")}
	if rows == 1 {
		return x
	}
	stride := g.gp("stride")
	for len(x) < rows {
		p := g.GP64()
		g.MOVQ(x[len(x)-1], p)
		g.ADDQ(stride, p)
		x = append(x, p)
	}
	return x
}

// int8Row sums a whole row in integers.
func (g *gen) int8Row(v isa, rows int) {
	g.function(fmt.Sprintf("int8Row%sx%d", v.name, rows), "func(dst *int32, x *int8, stride int, w *int8, n int)",
		fmt.Sprintf("sets dst[i] = Σ x[i·stride+j]·w[j] for i < %d; n is a multiple of 32.", rows))
	w, n := g.gp("w"), g.gp("n")
	x := g.int8Rows(rows)
	for i := range rows {
		g.zero(v, v.reg(int8Sums+i))
	}
	step := bytesPerStep(v)
	g.countdown("step", n, step, func() {
		g.int8Step(v, w, x, 0)
		g.advance(step, append(x, w)...)
	})
	dst := g.gp("dst")
	for i := range rows {
		g.sumInt32(v, v.reg(int8Sums+i), v.reg(int8X))
		g.VMOVD(v.reg(int8Sums+i).AsX(), at(dst, 4*i))
	}
	g.VZEROUPPER()
	g.RET()
}

// int8Groups sums groups of 32 columns in integers, each lane by itself, and the groups in float32.
func (g *gen) int8Groups(v isa, rows int) {
	g.function(fmt.Sprintf("int8Groups%sx%d", v.name, rows),
		"func(dst *float32, x *int8, stride int, w *int8, scale *float32, groups int)",
		fmt.Sprintf("sets dst[i] = Σ_g scale[g]·Σ_j x[i·stride+32g+j]·w[32g+j] for i < %d, j < 32, g < groups.", rows))
	w, scale, n := g.gp("w"), g.gp("scale"), g.gp("groups")
	x := g.int8Rows(rows)
	for i := range rows {
		g.zero(v, v.reg(int8Floats+i))
	}
	g.countdown("group", n, 1, func() {
		g.VBROADCASTSS(at(scale, 0), v.reg(int8Scale))
		for i := range rows {
			g.zero(v, v.reg(int8Sums+i))
		}
		for disp := 0; disp < 32; disp += bytesPerStep(v) {
			g.int8Step(v, w, x, disp)
		}
		for i := range rows {
			g.VCVTDQ2PS(v.reg(int8Sums+i), v.reg(int8Sums+i))
			g.VFMADD231PS(v.reg(int8Scale), v.reg(int8Sums+i), v.reg(int8Floats+i))
		}
		g.advance(32, append(x, w)...)
		g.advance(4, scale)
	})
	dst := g.gp("dst")
	for i := range rows {
		g.zero(v, v.reg(int8X))
		g.sum(v, v.reg(int8Floats+i), v.reg(int8X))
		g.VMOVSS(v.reg(int8Floats+i).AsX(), at(dst, 4*i))
	}
	g.VZEROUPPER()
	g.RET()
}

// sumInt32 adds up the lanes of r into its low lane; t is overwritten.
func (g *gen) sumInt32(v isa, r, t reg.VecPhysical) {
	if v.bytes == 64 {
		g.VEXTRACTI64X4(operand.U8(1), r, t.AsY())
		g.VPADDD(t.AsY(), r.AsY(), r.AsY())
	}
	g.VEXTRACTI128(operand.U8(1), r.AsY(), t.AsX())
	g.VPADDD(t.AsX(), r.AsX(), r.AsX())
	g.VPSHUFD(operand.U8(0b01_00_11_10), r.AsX(), t.AsX())
	g.VPADDD(t.AsX(), r.AsX(), r.AsX())
	g.VPSHUFD(operand.U8(0b10_11_00_01), r.AsX(), t.AsX())
	g.VPADDD(t.AsX(), r.AsX(), r.AsX())
}
