package main

import (
	"fmt"
	"math"

	"github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// fewBF16 writes Q4_K's product for inputs in bfloat16, as packQ4_K lays them out. In bfloat16 the numbers from 128 to 255
// are a step of 1 apart, so that a code becomes 128 + code by setting the bits of 128 above it: a shift and one logical
// operation make 32 weights. The 128 of every weight goes with the minimum, which multiplies the same sum of inputs.
func fewBF16(g *gen) {
	constant := func(name string, low, high uint64) operand.Mem {
		m := g.StaticGlobal(name)
		g.DataAttributes(rodata)
		for i := range 8 {
			g.AddDatum(8*i, operand.U64([]uint64{low, high}[i/4]))
		}
		return m
	}
	repeat := func(v uint32) uint64 { return uint64(v)<<32 | uint64(v) }
	constants := []operand.Mem{
		constant("nibbleWords", repeat(0x000f000f), repeat(0x000f000f)),
		constant("bits128", repeat(0x43004300), repeat(0x43004300)),
		constant("lowScales", repeat(0), repeat(2)),
		constant("highScales", repeat(1), repeat(3)),
		constant("float128", repeat(math.Float32bits(128)), repeat(math.Float32bits(128))),
	}
	for _, tokens := range []int{1, 2, 4} {
		g.function(fmt.Sprintf("dotQ4_KBF16x%d", tokens),
			"func(dst *float32, rowDst int, x *uint32, rowX int, src *byte, n int)",
			fmt.Sprintf("sets dst to the products of n > 0 blocks with %d tokens.", tokens),
			"Tokens, from packQ4_K, are rowX bytes apart in x, their results rowDst bytes in dst.")
		k := &fewKernel{unpacker: &unpacker{gen: g, isa: avx512}, tokens: tokens}
		dst, rowDst := g.gp("dst"), g.gp("rowDst")
		x, rowX := g.gp("x"), g.gp("rowX")
		k.src = g.gp("src")
		n := g.gp("n")
		k.scales = g.AllocLocal(128)
		k.tokenPointers(x, rowX)
		for i := range 8 {
			g.zero(avx512, k.reg(24+i))
		}
		for i := range tokens {
			g.zero(avx512, k.reg(12+i)) // Σ (minimum + 128·scale)·Σx
		}
		for i, c := range constants {
			g.VMOVUPS(c, k.reg(16+i))
		}
		nibbles, bits128, lowScales, highScales := k.reg(16), k.reg(17), k.reg(18), k.reg(19)
		g.Label("block")
		k.prefetch(144)
		k.half16(0, 4)
		k.half16(2, 5)
		k.scaleMin6()
		g.VFMADD231PS(k.y(8), k.y(20), k.y(9))
		for i, p := range k.x {
			g.VFMADD231PS(at(p, 512), k.y(9), k.y(12+i))
		}
		// Half a block: lanes 0 to 7 are of its first two groups, lanes 8 to 15 of the others. The weights of the lower
		// and upper nibbles, of bytes 0, 2, ... and 1, 3, ...
		for h := range 2 {
			weights := [4]reg.VecPhysical{k.reg(0), k.reg(2), k.reg(1), k.reg(3)}
			g.VMOVDQU64(at(k.src, 16+64*h), weights[0])
			g.VPSRLW(operand.U8(4), weights[0], weights[2])
			g.VPSRLW(operand.U8(8), weights[0], weights[1])
			g.VPSRLW(operand.U8(12), weights[0], weights[3])
			for _, w := range weights {
				const andOr = 0xea // (w & nibbles) | bits128
				g.VPTERNLOGD(operand.U8(andOr), bits128, nibbles, w)
			}
			scales := [2]reg.VecPhysical{k.reg(6), k.reg(7)}
			g.VBROADCASTF32X4(k.group(4*h), k.reg(21))
			g.VPERMILPS(lowScales, k.reg(21), scales[0])
			g.VPERMILPS(highScales, k.reg(21), scales[1])
			for i, x := range k.x {
				sums := k.sums(i)
				for half, scale := range scales {
					product := k.reg(10 + half)
					g.zero(avx512, product)
					for j := range 2 {
						v := 2*half + j
						g.VMOVUPS(at(x, 256*h+64*v), k.reg(22+j))
						g.vdpbf16ps(k.reg(22+j), weights[v], product)
					}
					g.VFMADD231PS(product, scale, sums[(2*h+half)%len(sums)])
				}
			}
		}
		g.ADDQ(operand.I32(144), k.src)
		for _, p := range k.x {
			g.ADDQ(operand.I32(544), p)
		}
		g.DECQ(n)
		g.JNZ(operand.LabelRef("block"))
		for i := range tokens {
			s := k.sums(i)[0]
			g.VSUBPS(k.reg(12+i), s, s)
		}
		k.results(dst, rowDst)
	}
}
