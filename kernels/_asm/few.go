package main

import (
	"fmt"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// few writes the products of one row of weights with a few tokens, straight from the blocks: memory feeds a core two to
// four bits of weights per cycle and lane at best, and nothing may take longer than that.
//
// Codes of four bits need no arithmetic at all: the 16 values that a group can take are computed once per group, and
// VPERMPS, which looks only at the low four bits of an index, picks them. Other weights are multiplied as they are unpacked.
func few(g *gen) {
	c := g.constants()
	f := g.levels16()
	picked := map[string]struct{ setup, block func(k *fewKernel) }{
		"Q4_0":   {func(k *fewKernel) { k.VMOVUPS(f.q4_0, k.reg(16)) }, (*fewKernel).q4},
		"IQ4_NL": {func(k *fewKernel) { k.VMOVUPS(f.iq4, k.reg(16)) }, (*fewKernel).q4},
		"Q4_K":   {func(k *fewKernel) { k.VMOVUPS(f.q4_K, k.reg(16)) }, (*fewKernel).q4_K},
	}
	for _, tokens := range []int{1, 2, 4} {
		for _, t := range blockTypes {
			name := fmt.Sprintf("dot%sx%d", t.name, tokens)
			what := "blocks"
			if t.weights == 32 && t.bytes == 64 {
				what = "runs of 32 weights"
			}
			g.function(name, "func(dst *float32, rowDst int, x *float32, rowX int, src *byte, n int)",
				fmt.Sprintf("sets dst to the products of n > 0 %s with %d tokens.", what, tokens),
				"Tokens are rowX bytes apart in x, their results rowDst bytes in dst.")
			k := &fewKernel{
				unpacker: &unpacker{gen: g, constants: c, isa: avx512},
				tokens:   tokens,
			}
			k.product = func(position int) {
				k.accumulate(0, position)
				k.accumulate(1, position+16)
			}
			dst, rowDst := g.gp("dst"), g.gp("rowDst")
			x, rowX := g.gp("x"), g.gp("rowX")
			k.src = g.gp("src")
			n := g.gp("n")
			if t.weights > 32 {
				k.scales = g.AllocLocal(128)
			}
			k.tokenPointers(x, rowX)
			for i := range 8 {
				g.zero(avx512, k.reg(24+i))
			}
			p, picks := picked[t.name]
			if picks {
				p.setup(k)
			}
			g.Label("block")
			k.prefetch(t.bytes)
			if picks {
				p.block(k)
			} else {
				t.block(k.unpacker)
			}
			g.ADDQ(operand.I32(int32(t.bytes)), k.src)
			for _, p := range k.x {
				g.ADDQ(operand.I32(int32(4*t.weights)), p)
			}
			g.DECQ(n)
			g.JNZ(operand.LabelRef("block"))
			k.results(dst, rowDst)
		}
	}
}

// fewKernel multiplies blocks with tokens. Registers 24 to 31 hold sums, two or more for a token.
type fewKernel struct {
	*unpacker
	tokens int
	x      []reg.Register // each token's inputs of this block
}

// prefetch asks for a block that is two pages ahead, as the hardware itself stops at the end of each page. It is meant for
// the L2 cache: a request for L1 would hold one of that cache's few places for misses.
func (k *fewKernel) prefetch(bytes int) {
	const ahead = 8192
	for line := 0; line < bytes; line += 64 {
		k.PREFETCHT1(at(k.src, ahead+line))
	}
}

// sums are the registers in which token i is summed.
func (k *fewKernel) sums(i int) []reg.VecPhysical {
	n := max(2, 4/k.tokens)
	var r []reg.VecPhysical
	for j := range n {
		r = append(r, k.reg(24+n*i+j))
	}
	return r
}

// tokenPointers makes a pointer to each token.
func (k *fewKernel) tokenPointers(x, rowX reg.Register) {
	k.x = append(k.x, x)
	for range k.tokens - 1 {
		p := k.GP64()
		k.MOVQ(k.x[len(k.x)-1], p)
		k.ADDQ(rowX, p)
		k.x = append(k.x, p)
	}
}

// results stores each token's sum and returns.
func (k *fewKernel) results(dst, rowDst reg.Register) {
	for i := range k.tokens {
		// What follows reaches only the lower 16 registers.
		var low []reg.VecPhysical
		for j, s := range k.sums(i) {
			low = append(low, k.reg(j))
			k.VMOVUPS(s, low[j])
		}
		k.sum(avx512, low...)
		k.VMOVSS(low[0].AsX(), at(dst, 0))
		if i < k.tokens-1 {
			k.ADDQ(rowDst, dst)
		}
	}
	k.VZEROUPPER()
	k.RET()
}

// accumulate adds the products of 16 weights, values in register r, with the inputs from position on.
func (k *fewKernel) accumulate(r, position int) {
	for i := range k.tokens {
		s := k.sums(i)
		k.VFMADD231PS(at(k.x[i], 4*position), k.reg(r), s[position/16%len(s)])
	}
}

// pick accumulates the low and high halves of the 16 bytes at offset, whose values are in registers low and high.
func (k *fewKernel) pick(offset, low, high, positionLow, positionHigh int) {
	k.VPMOVZXBD(at(k.src, offset), k.reg(0))
	k.VPSRLD(operand.U8(4), k.reg(0), k.reg(1))
	k.VPERMPS(k.reg(low), k.reg(0), k.reg(2))
	k.VPERMPS(k.reg(high), k.reg(1), k.reg(3))
	k.accumulate(2, positionLow)
	k.accumulate(3, positionHigh)
}

func (k *fewKernel) q4() {
	k.half16(0, 4)
	k.VMULPS(k.reg(16), k.reg(4), k.reg(4))
	k.pick(2, 4, 4, 0, 16)
}

func (k *fewKernel) q4_K() {
	k.half16(0, 4)
	k.half16(2, 5)
	k.scaleMin6()
	for p := range 4 {
		for h := range 2 {
			values := 6 + h
			k.VBROADCASTSS(k.group(16+2*p+h), k.reg(values))
			k.VFMSUB231PS_BCST(k.group(2*p+h), k.reg(16), k.reg(values))
		}
		for h := range 2 {
			k.pick(16+32*p+16*h, 6, 7, 64*p+16*h, 64*p+32+16*h)
		}
	}
}
