package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The layouts of packed operands, which q8/product.go describes.
const (
	q8Tokens  = 6  // in a panel of inputs
	q8Outputs = 32 // in a strip of weights
	q8Group   = 32 // inputs that share a step
	q8Ahead   = 8  // groups that inputs are asked for ahead: the distance is cheap to cover
)

// q8Variant is a shape of weights: groups of 32 or 16 that share a scale, with a minimum or without.
type q8Variant struct {
	name     string
	parts    int // groups of weights in a group of inputs
	minimums bool
	bits     []int // that levels of such types have
}

var q8Variants = []q8Variant{
	{"Group32", 1, false, []int{4, 6, 8}}, {"Group32Min", 1, true, []int{4, 6}},
	{"Group16", 2, false, []int{4, 6, 8}}, {"Group16Min", 2, true, []int{4}},
}

// words is the number of words per token and group beside the codes: where sums of products start, for each part, what
// is subtracted from them, and the sum of the codes of each part, in the unit of the token's step.
func (v q8Variant) words() int { return 2*v.parts + 1 }

// q8 writes the products of unsigned bytes, the weights, with signed ones, the inputs, and the rounding of inputs.
//
// The sums of a group start at an int32 whose bits are those of the float32 1.5·2^(23+e): adding n to the bits adds n·2^e
// to the value as long as n is below 2²² in magnitude, and subtracting the start in float32 leaves n·2^e, exactly. That
// is a conversion and a multiplication by the group's step, a power of two, for one addition, which does not compete
// with the products for their execution units. Levels without minimums are multiplied too large by what
// kernelSet.offset says, 128 for VNNI: their sums start at that times the sum of the codes less.
func q8(g *gen) {
	for _, v := range q8Variants {
		g.q8TileVNNI(v)
	}
	for _, v := range q8Variants {
		g.q8TileAVXVNNI(v)
	}
	for _, v := range q8Variants {
		for _, bits := range v.bits {
			if bits == 8 {
				g.q8TileWide(v)
			} else {
				g.q8TileAVX2(v, bits)
			}
		}
	}
	g.q8Widen()
	g.q8Lower()
	g.q8Largest()
	g.q8Round("q8RoundAVX2", q8Tokens)
}

const q8Signature = "func(panels, groups int, x, sums, w *uint32, scale, c *float32, rowC int, step *float32, add bool)"

func q8Doc(tokens, outputs int) []string {
	return []string{fmt.Sprintf("sets C = step·X·Wᵀ, or C += step·X·Wᵀ if add, for each of a number of panels; C is %d×%d.",
		tokens, outputs), "",
		"A group of 32 columns has its codes at x and its sums at sums, as q8Inputs lays them out, and its levels at w and",
		"scales, and minimums, at scale, as q8Strip does. C's row i is rowC·i bytes from c, the next panel's C as many rows on as",
		"a panel of q8Inputs has tokens; panels and groups are positive."}
}

// q8TileVNNI keeps 12 sums of integers and the 12 of C in registers. A group of 32 takes 96 VPDPBUSD and 12 additions
// and multiply-adds.
func (g *gen) q8TileVNNI(v q8Variant) {
	const vecs = 2
	g.function("q8"+v.name+"VNNI", q8Signature, q8Doc(q8Tokens, q8Outputs)...)
	x, sums, dst, rowC, step := g.gp("x"), g.gp("sums"), g.gp("c"), g.gp("rowC"), g.gp("step")
	g.Label("panel")
	groups, w, scale := g.gp("groups"), g.gp("w"), g.gp("scale")
	z := avx512.reg
	c := func(t, j int) reg.VecPhysical { return z(vecs*t + j) }
	acc := func(t, j int) reg.VecPhysical { return z(vecs*(q8Tokens+t) + j) }
	vecW := func(j int) reg.VecPhysical { return z(4*q8Tokens + j) }
	temp := func(i int) reg.VecPhysical { return z(4*q8Tokens + vecs + i%6) }
	word := func(i, t int) operand.Mem { return at(sums, 4*(q8Tokens*i+t)) }
	g.Comment("Bring C near while the sums run.")
	near := g.GP64()
	g.MOVQ(dst, near)
	for t := range q8Tokens {
		g.PREFETCHT0(at(near, 0))
		g.PREFETCHT0(at(near, 64*vecs-1))
		g.ADDQ(rowC, near)
		for j := range vecs {
			g.zero(avx512, c(t, j))
		}
	}
	rowScale := vecs * 64
	if v.minimums {
		rowScale *= 2
	}
	steps := q8Group / 4 / v.parts
	g.Label("group")
	g.Comment("The next panel follows this one.")
	for i := 0; i < q8Tokens*q8Group; i += 64 {
		g.PREFETCHT0(at(x, q8Ahead*q8Tokens*q8Group+i))
	}
	for i := 0; i < 4*q8Tokens*v.words(); i += 64 {
		g.PREFETCHT0(at(sums, q8Ahead*4*q8Tokens*v.words()+i))
	}
	for part := range v.parts {
		for t := range q8Tokens {
			start := word(part, t)
			if v.minimums {
				start = word(v.parts, t) // the levels have no offset
			}
			g.VPBROADCASTD(start, acc(t, 0))
			g.VMOVDQA64(acc(t, 0), acc(t, 1))
		}
		for s := part * steps; s < (part+1)*steps; s++ {
			for j := range vecs {
				g.VMOVDQU64(at(w, (vecs*s+j)*64), vecW(j))
			}
			for t := range q8Tokens {
				g.VPBROADCASTD(at(x, q8Group*t+4*s), temp(t))
				for j := range vecs {
					g.vpdpbusd(temp(t), vecW(j), acc(t, j))
				}
			}
		}
		for j := range vecs {
			g.VMOVUPS(at(scale, part*rowScale+64*j), vecW(j))
			if v.minimums {
				g.VMOVUPS(at(scale, part*rowScale+vecs*64+64*j), temp(j))
			}
		}
		for t := range q8Tokens {
			for j := range vecs {
				g.VSUBPS_BCST(word(v.parts, t), acc(t, j), acc(t, j))
				g.VFMADD231PS(vecW(j), acc(t, j), c(t, j))
				if v.minimums {
					g.VFNMADD231PS_BCST(word(v.parts+1+part, t), temp(j), c(t, j))
				}
			}
		}
	}
	g.ADDQ(operand.I32(q8Tokens*q8Group), x)
	g.ADDQ(operand.I32(int32(4*q8Tokens*v.words())), sums)
	g.ADDQ(operand.I32(q8Group*q8Outputs), w)
	g.ADDQ(operand.I32(int32(v.parts*rowScale)), scale)
	g.DECQ(groups)
	g.JNZ(operand.LabelRef("group"))
	g.q8Store(avx512, q8Tokens, vecs, dst, rowC, step, c, temp)
}

// q8TileAVXVNNI computes a panel by half a strip. VPDPBUSD takes five cycles and two start in each, so that ten sums have to
// be under way: 12 sums of integers take the registers, and C stays on the stack, whose elements are read and written
// once in a group's 96 VPDPBUSD (48 of groups of 16).
func (g *gen) q8TileAVXVNNI(v q8Variant) {
	const vecs = 2
	g.function("q8"+v.name+"AVXVNNI", q8Signature, q8Doc(q8Tokens, vecs*8)...)
	local := g.AllocLocal(q8Tokens * vecs * 32)
	x, sums, dst, rowC, step := g.gp("x"), g.gp("sums"), g.gp("c"), g.gp("rowC"), g.gp("step")
	g.Label("panel")
	groups, w, scale := g.gp("groups"), g.gp("w"), g.gp("scale")
	y := avx2.reg
	acc := func(t, j int) reg.VecPhysical { return y(vecs*t + j) }
	c := func(t, j int) operand.Mem { return local.Offset(32 * (vecs*t + j)) }
	vecW := func(j int) reg.VecPhysical { return y(vecs*q8Tokens + j) }
	temp := func(i int) reg.VecPhysical { return y(vecs*q8Tokens + vecs + i%2) }
	word := func(i, t int) operand.Mem { return at(sums, 4*(q8Tokens*i+t)) }
	g.zero(avx2, temp(0))
	for t := range q8Tokens {
		for j := range vecs {
			g.VMOVUPS(temp(0), c(t, j))
		}
	}
	rowScale := 4 * q8Outputs
	if v.minimums {
		rowScale *= 2
	}
	steps := q8Group / 4 / v.parts
	g.Label("group")
	for part := range v.parts {
		for t := range q8Tokens {
			start := word(part, t)
			if v.minimums {
				start = word(v.parts, t) // the levels have no offset
			}
			g.VPBROADCASTD(start, acc(t, 0))
			g.VMOVDQA(acc(t, 0), acc(t, 1))
		}
		for s := part * steps; s < (part+1)*steps; s++ {
			for j := range vecs {
				g.VMOVDQU(at(w, 4*q8Outputs*s+32*j), vecW(j))
			}
			for t := range q8Tokens {
				g.VPBROADCASTD(at(x, q8Group*t+4*s), temp(t))
				for j := range vecs {
					g.vpdpbusd256(temp(t), vecW(j), acc(t, j))
				}
			}
		}
		for j := range vecs {
			g.VMOVUPS(at(scale, part*rowScale+32*j), vecW(j))
		}
		for t := range q8Tokens {
			g.VBROADCASTSS(word(v.parts, t), temp(0))
			if v.minimums {
				g.VBROADCASTSS(word(v.parts+1+part, t), temp(1))
			}
			for j := range vecs {
				g.VSUBPS(temp(0), acc(t, j), acc(t, j))
				g.VFMADD213PS(c(t, j), vecW(j), acc(t, j))
				if v.minimums {
					g.VFNMADD231PS(at(scale, part*rowScale+4*q8Outputs+32*j), temp(1), acc(t, j))
				}
				g.VMOVUPS(acc(t, j), c(t, j))
			}
		}
	}
	g.ADDQ(operand.I32(q8Tokens*q8Group), x)
	g.ADDQ(operand.I32(int32(4*q8Tokens*v.words())), sums)
	g.ADDQ(operand.I32(q8Group*q8Outputs), w)
	g.ADDQ(operand.I32(int32(v.parts*rowScale)), scale)
	g.DECQ(groups)
	g.JNZ(operand.LabelRef("group"))
	for t := range q8Tokens {
		for j := range vecs {
			g.VMOVUPS(c(t, j), acc(t, j))
		}
	}
	g.q8Store(avx2, q8Tokens, vecs, dst, rowC, step, acc, temp)
}

// q8Store multiplies C by the steps and stores it, or adds it to what is there, and goes on with the next panel.
func (g *gen) q8Store(v isa, tokens, vecs int, dst, rowC, step reg.Register, c func(t, j int) reg.VecPhysical,
	temp func(i int) reg.VecPhysical) {
	for t := range tokens {
		g.VBROADCASTSS(at(step, 4*t), temp(0))
		for j := range vecs {
			g.VMULPS(temp(0), c(t, j), c(t, j))
		}
	}
	p, add := g.GP64(), g.Load(g.Param("add"), g.GP8())
	g.TESTB(add, add)
	g.JZ(operand.LabelRef("store"))
	g.MOVQ(dst, p)
	for t := range tokens {
		for j := range vecs {
			g.VADDPS(at(p, j*v.bytes), c(t, j), c(t, j))
		}
		if t < tokens-1 {
			g.ADDQ(rowC, p)
		}
	}
	g.Label("store")
	g.MOVQ(dst, p)
	for t := range tokens {
		for j := range vecs {
			g.VMOVUPS(c(t, j), at(p, j*v.bytes))
		}
		if t < tokens-1 {
			g.ADDQ(rowC, p)
		}
	}
	g.LEAQ(operand.Mem{Base: dst, Index: rowC, Scale: 4}, dst)
	g.LEAQ(operand.Mem{Base: dst, Index: rowC, Scale: 2}, dst)
	g.advance(4*q8Tokens, step)
	g.DECQ(g.param("panels"))
	g.JNZ(operand.LabelRef("panel"))
	g.VZEROUPPER()
	g.RET()
}

// q8TileAVX2 computes half a panel by half a strip, of levels of so many bits, 2^(bits-1) too large if they have no minimums. VPMADDUBSW
// adds pairs of products of unsigned and signed bytes to 16 bits. Levels of 6 bits give at most 2·63·127 = 16002 there, of which two fit,
// and those of 4 bits 2·15·127 = 3810, of which a part's eight fit: their 16-bit sums are widened once.
func (g *gen) q8TileAVX2(v q8Variant, bits int) {
	const tokens, vecs = q8Tokens / 2, 2
	name := fmt.Sprintf("q8%sBits%dAVX2", v.name, bits)
	ones := g.bytes32(name+"Ones", func(i int) byte { return byte(1 - i%2) })
	g.function(name, q8Signature, q8Doc(tokens, vecs*8)...)
	x, sums, dst, rowC, step := g.gp("x"), g.gp("sums"), g.gp("c"), g.gp("rowC"), g.gp("step")
	g.Label("panel")
	groups, w, scale := g.gp("groups"), g.gp("w"), g.gp("scale")
	y := avx2.reg
	c := func(t, j int) reg.VecPhysical { return y(vecs*t + j) }
	acc := func(t, j int) reg.VecPhysical { return y(vecs*(tokens+t) + j) }
	vecW := func(j int) reg.VecPhysical { return y(12 + j) }
	in, temp := y(14), y(15)
	word := func(i, t int) operand.Mem { return at(sums, 4*(q8Tokens*i+t)) }
	for t := range tokens {
		for j := range vecs {
			g.zero(avx2, c(t, j))
		}
	}
	rowScale := 4 * q8Outputs
	if v.minimums {
		rowScale *= 2
	}
	level := func(s, j int) operand.Mem { return at(w, 4*q8Outputs*s+32*j) }
	code := func(s, t int) operand.Mem { return at(x, q8Group*t+4*s) }
	steps := q8Group / 4 / v.parts
	g.Label("group")
	for part := range v.parts {
		first, last := part*steps, (part+1)*steps
		switch bits {
		case 4:
			for s := first; s < last; s++ {
				for j := range vecs {
					g.VMOVDQU(level(s, j), vecW(j))
				}
				for t := range tokens {
					g.VPBROADCASTD(code(s, t), in)
					if s == first {
						g.VPMADDUBSW(in, vecW(0), acc(t, 0))
						g.VPMADDUBSW(in, vecW(1), acc(t, 1))
						continue
					}
					g.VPMADDUBSW(in, vecW(0), temp)
					g.VPADDW(temp, acc(t, 0), acc(t, 0))
					g.VPMADDUBSW(in, vecW(1), in)
					g.VPADDW(in, acc(t, 1), acc(t, 1))
				}
			}
			for t := range tokens {
				for j := range vecs {
					g.VPMADDWD(ones, acc(t, j), acc(t, j))
				}
			}
		case 6:
			for s := first; s < last; s += 2 {
				for j := range vecs {
					g.VMOVDQU(level(s, j), vecW(0))
					g.VMOVDQU(level(s+1, j), vecW(1))
					for t := range tokens {
						g.VPBROADCASTD(code(s, t), in)
						g.VPBROADCASTD(code(s+1, t), temp)
						g.VPMADDUBSW(in, vecW(0), in)
						g.VPMADDUBSW(temp, vecW(1), temp)
						g.VPADDW(temp, in, in)
						if s == first {
							g.VPMADDWD(ones, in, acc(t, j))
							continue
						}
						g.VPMADDWD(ones, in, in)
						g.VPADDD(in, acc(t, j), acc(t, j))
					}
				}
			}
		}
		for t := range tokens {
			start := in
			g.VPBROADCASTD(word(v.parts, t), in)
			if !v.minimums {
				g.VPBROADCASTD(word(part, t), temp)
				start = temp
			}
			for j := range vecs {
				g.VPADDD(start, acc(t, j), acc(t, j))
			}
			if v.minimums {
				g.VBROADCASTSS(word(v.parts+1+part, t), temp)
			}
			for j := range vecs {
				g.VSUBPS(in, acc(t, j), acc(t, j))
				g.VFMADD231PS(at(scale, part*rowScale+32*j), acc(t, j), c(t, j))
				if v.minimums {
					g.VFNMADD231PS(at(scale, part*rowScale+4*q8Outputs+32*j), temp, c(t, j))
				}
			}
		}
	}
	g.advance(q8Tokens*q8Group, x)
	g.advance(4*q8Tokens*v.words(), sums)
	g.advance(q8Group*q8Outputs, w)
	g.advance(v.parts*rowScale, scale)
	g.DECQ(groups)
	g.JNZ(operand.LabelRef("group"))
	g.q8Store(avx2, tokens, vecs, dst, rowC, step, c, func(int) reg.VecPhysical { return temp })
}

// q8TileWide computes a panel by half a strip, of levels of eight bits. Their products do not fit VPMADDUBSW's 16 bits in pairs, unless
// signs move from levels to inputs for each token, so that both are widened to 16 bits before, once for many products: VPMADDWD and
// VPADDD then do 16 of them. 12 sums of integers take most registers, and C stays on the stack.
func (g *gen) q8TileWide(v q8Variant) {
	const tokens, vecs = q8Tokens, 2
	doc := q8Doc(tokens, vecs*8)
	doc[1] = "Codes and levels are of 16 bits, the latter without an offset; two columns' levels of an output are together."
	g.function("q8"+v.name+"WideAVX2", q8Signature, append(doc[:2], append([]string{""}, doc[2:]...)...)...)
	local := g.AllocLocal(tokens * vecs * 32)
	x, sums, dst, rowC, step := g.gp("x"), g.gp("sums"), g.gp("c"), g.gp("rowC"), g.gp("step")
	g.Label("panel")
	groups, w, scale := g.gp("groups"), g.gp("w"), g.gp("scale")
	y := avx2.reg
	acc := func(t, j int) reg.VecPhysical { return y(vecs*t + j) }
	c := func(t, j int) operand.Mem { return local.Offset(32 * (vecs*t + j)) }
	vecW := func(j int) reg.VecPhysical { return y(vecs*tokens + j) }
	in, temp := y(vecs*tokens+vecs), y(vecs*tokens+vecs+1)
	word := func(i, t int) operand.Mem { return at(sums, 4*(q8Tokens*i+t)) }
	g.zero(avx2, temp)
	for t := range tokens {
		for j := range vecs {
			g.VMOVUPS(temp, c(t, j))
		}
	}
	const rowScale = 4 * q8Outputs
	steps := q8Group / 2 / v.parts
	g.Label("group")
	for part := range v.parts {
		for t := range tokens {
			g.VPBROADCASTD(word(v.parts, t), acc(t, 0))
			g.VMOVDQA(acc(t, 0), acc(t, 1))
		}
		for s := part * steps; s < (part+1)*steps; s++ {
			for j := range vecs {
				g.VMOVDQU(at(w, 4*q8Outputs*s+32*j), vecW(j))
			}
			for t := range tokens {
				g.VPBROADCASTD(at(x, 2*q8Group*t+4*s), in)
				g.VPMADDWD(in, vecW(0), temp)
				g.VPADDD(temp, acc(t, 0), acc(t, 0))
				g.VPMADDWD(in, vecW(1), in)
				g.VPADDD(in, acc(t, 1), acc(t, 1))
			}
		}
		for j := range vecs {
			g.VMOVUPS(at(scale, part*rowScale+32*j), vecW(j))
		}
		for t := range tokens {
			g.VBROADCASTSS(word(v.parts, t), in)
			for j := range vecs {
				g.VSUBPS(in, acc(t, j), acc(t, j))
				g.VFMADD213PS(c(t, j), vecW(j), acc(t, j))
				g.VMOVUPS(acc(t, j), c(t, j))
			}
		}
	}
	g.advance(2*q8Tokens*q8Group, x)
	g.advance(4*q8Tokens*v.words(), sums)
	g.advance(2*q8Group*q8Outputs, w)
	g.advance(v.parts*rowScale, scale)
	g.DECQ(groups)
	g.JNZ(operand.LabelRef("group"))
	for t := range tokens {
		for j := range vecs {
			g.VMOVUPS(c(t, j), acc(t, j))
		}
	}
	g.q8Store(avx2, tokens, vecs, dst, rowC, step, acc, func(int) reg.VecPhysical { return temp })
}

// q8Widen makes bytes numbers of 16 bits.
func (g *gen) q8Widen() {
	g.function("q8WidenAVX2", "func(dst, src *uint32, flip uint32, n int)",
		"sets the 4n numbers of 16 bits at dst to the signed bytes at src, flip's bits turned in each four; n is a multiple of 8. dst may",
		"begin as many words before src as there are.")
	dst, src, n := g.gp("dst"), g.gp("src"), g.gp("n")
	y := avx2.reg
	g.VMOVD(g.Load(g.Param("flip"), g.GP32()), y(2).AsX())
	g.VPBROADCASTD(y(2).AsX(), y(2))
	g.countdown("words", n, 8, func() {
		g.VPXOR(at(src, 0), y(2), y(1))
		g.VPMOVSXBW(y(1).AsX(), y(0))
		g.VEXTRACTI128(operand.U8(1), y(1), y(1).AsX())
		g.VPMOVSXBW(y(1).AsX(), y(1))
		g.VMOVDQU(y(0), at(dst, 0))
		g.VMOVDQU(y(1), at(dst, 32))
		g.advance(32, src)
		g.advance(64, dst)
	})
	g.VZEROUPPER()
	g.RET()
}

// q8Lower takes a number off every byte.
func (g *gen) q8Lower() {
	g.function("q8LowerAVX2", "func(levels *uint32, by uint32, n int)",
		"takes the bytes of by off those of each of n words; n is a multiple of 8.")
	levels, n := g.gp("levels"), g.gp("n")
	y := avx2.reg
	g.VMOVD(g.Load(g.Param("by"), g.GP32()), y(1).AsX())
	g.VPBROADCASTD(y(1).AsX(), y(1))
	g.countdown("words", n, 8, func() {
		g.VMOVDQU(at(levels, 0), y(0))
		g.VPSUBB(y(1), y(0), y(0))
		g.VMOVDQU(y(0), at(levels, 0))
		g.advance(32, levels)
	})
	g.VZEROUPPER()
	g.RET()
}

// q8Largest finds the largest magnitude in each group. The bits of magnitudes are in their order, NaN above infinity.
func (g *gen) q8Largest() {
	signless := g.bytes32("signless", func(i int) byte { return []byte{255, 255, 255, 127}[i%4] })
	g.function("q8LargestAVX2", "func(dst *uint32, x *float32, groups int)",
		"sets dst[g] to the largest of the bits of |x[32g+j]|, j < 32.")
	dst, x, n := g.gp("dst"), g.gp("x"), g.gp("groups")
	y := avx2.reg
	g.VMOVDQU(signless, y(15))
	g.countdown("group", n, 1, func() {
		for i := range 4 {
			g.VPAND(at(x, 32*i), y(15), y(i))
		}
		g.VPMAXUD(y(1), y(0), y(0))
		g.VPMAXUD(y(3), y(2), y(2))
		g.VPMAXUD(y(2), y(0), y(0))
		g.VEXTRACTI128(operand.U8(1), y(0), y(1).AsX())
		for _, order := range []uint8{0b01_00_11_10, 0b10_11_00_01} {
			g.VPMAXUD(y(1).AsX(), y(0).AsX(), y(0).AsX())
			g.VPSHUFD(operand.U8(order), y(0).AsX(), y(1).AsX())
		}
		g.VPMAXUD(y(1).AsX(), y(0).AsX(), y(0).AsX())
		g.VMOVD(y(0).AsX(), at(dst, 0))
		g.advance(128, x)
		g.advance(4, dst)
	})
	g.VZEROUPPER()
	g.RET()
}

// q8Round rounds groups of a token, and fills in what goes with the codes, in panels of so many tokens.
func (g *gen) q8Round(name string, tokens int) {
	order := g.dwords8("q8Order", [8]uint32{0, 4, 1, 5, 2, 6, 3, 7})
	bytes := g.bytes32("q8Bytes", func(int) byte { return 1 })
	words := g.bytes32("q8Words", func(i int) byte { return byte(1 - i%2) })
	g.function(name,
		"func(codes, sums, halves *uint32, x *float32, inverse float32, e *int32, groups int, offset uint32)",
		"rounds x[32g+j]·inverse·2^-e[g] to the nearest number within −128 and 127, ties to even, for g < groups, j < 32,",
		fmt.Sprintf("and fills in a token of q8Inputs, %d to a panel: its codes, and both versions of its sums, the second one if halves is not nil,", tokens),
		"for levels with an offset.")
	codes, sums, halves, x, e, n := g.gp("codes"), g.gp("sums"), g.gp("halves"), g.gp("x"), g.gp("e"), g.gp("groups")
	y := avx2.reg
	const inverse, unit = 8, 9
	offset := g.Load(g.Param("offset"), g.GP32())
	g.VMOVSS(g.param("inverse"), y(inverse).AsX())
	g.VMOVDQU(order, y(13))
	g.VMOVDQU(bytes, y(14))
	g.VMOVDQU(words, y(15))
	const one, magic = 0x3f800000, 0x4b400000 // 1 and 1.5·2²³
	exponent, t, start, first, last := g.GP32(), g.GP32(), g.GP32(), g.GP32(), g.GP32()
	// put stores what belongs to the sum of a part's codes, which it destroys.
	put := func(base reg.Register, part, parts int, sum reg.Register) {
		g.VCVTSI2SSL(sum, y(0).AsX(), y(0).AsX())
		g.VMULSS(y(unit).AsX(), y(0).AsX(), y(0).AsX())
		g.VMOVSS(y(0).AsX(), at(base, 4*tokens*(parts+1+part)))
		g.IMULL(offset, sum)
		g.MOVL(start, t)
		g.SUBL(sum, t)
		g.MOVL(t, at(base, 4*tokens*part))
	}
	g.Label("group")
	g.MOVL(at(e, 0), exponent)
	g.SHLL(operand.U8(23), exponent)
	g.MOVL(operand.U32(one), t)
	g.SUBL(exponent, t)
	g.VMOVD(t, y(4).AsX())
	g.VMULSS(y(inverse).AsX(), y(4).AsX(), y(4).AsX())
	g.VBROADCASTSS(y(4).AsX(), y(4))
	g.MOVL(operand.U32(one), t)
	g.ADDL(exponent, t)
	g.VMOVD(t, y(unit).AsX())
	g.MOVL(operand.U32(magic), start)
	g.ADDL(exponent, start)
	for i := range 4 {
		g.VMULPS(at(x, 32*i), y(4), y(i))
		g.VCVTPS2DQ(y(i), y(i))
	}
	g.Comment("Packing works on halves of a vector: dword i of eight is four codes of eight i%4, half i/4.")
	g.VPACKSSDW(y(1), y(0), y(0))
	g.VPACKSSDW(y(3), y(2), y(2))
	g.VPACKSSWB(y(2), y(0), y(0))
	g.VPERMD(y(0), y(13), y(0))
	g.VMOVDQU(y(0), at(codes, 0))
	g.VPMADDUBSW(y(0), y(14), y(0))
	g.VPMADDWD(y(0), y(15), y(0))
	for _, order := range []uint8{0b01_00_11_10, 0b10_11_00_01} {
		g.VPSHUFD(operand.U8(order), y(0), y(1))
		g.VPADDD(y(1), y(0), y(0))
	}
	g.VEXTRACTI128(operand.U8(1), y(0), y(1).AsX())
	g.VMOVD(y(0).AsX(), first)
	g.VMOVD(y(1).AsX(), last)
	sum := g.GP32()
	g.MOVL(first, sum)
	g.ADDL(last, sum)
	put(sums, 0, 1, sum)
	g.MOVL(start, at(sums, 4*tokens))
	g.TESTQ(halves, halves)
	g.JZ(operand.LabelRef("next"))
	put(halves, 0, 2, first)
	put(halves, 1, 2, last)
	g.MOVL(start, at(halves, 4*tokens*2))
	g.ADDQ(operand.I32(4*tokens*5), halves)
	g.Label("next")
	g.advance(128, x)
	g.advance(4, e)
	g.advance(4*tokens*3, sums)
	g.advance(tokens*q8Group, codes)
	g.DECQ(n)
	g.JNZ(operand.LabelRef("group"))
	g.VZEROUPPER()
	g.RET()
}

// bytes32 is a constant of 32 bytes.
func (g *gen) bytes32(name string, f func(i int) byte) operand.Mem {
	m := g.StaticGlobal(name)
	g.DataAttributes(rodata)
	for i := 0; i < 32; i += 8 {
		var v uint64
		for j := range 8 {
			v |= uint64(f(i+j)) << (8 * j)
		}
		g.AddDatum(i, operand.U64(v))
	}
	return m
}

// dwords8 is a constant of 8 words.
func (g *gen) dwords8(name string, v [8]uint32) operand.Mem {
	return g.bytes32(name, func(i int) byte { return byte(v[i/4] >> (i % 4 * 8)) })
}
