package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q4_K holds 256 weights in 144 bytes, 4.5 bits per weight: a super-block of 8 groups of 32.
//
//	d      float16
//	dmin   float16
//	scales [12]byte   eight 6-bit scales and eight 6-bit minima: see scaleMin6
//	qs     [128]byte  32 bytes for each pair of groups, the first in the low halves, the second in the high ones
//
//	w = d·sc·q − dmin·m, q in 0..15, sc and m in 0..63
var Q4_K = &Type{
	Format: kernels.Format{Name: "Q4_K", BlockLen: 256, BlockBytes: 144, Unpack: unpackQ4_K},
	ID:     12,
	Grid: fit.New(quant.Affine{Name: "Q4_K", Block: 256, Group: 32, CodeMin: 0, CodeMax: 15,
		Scales: quant.Scales{Super: true, Min: 0, Max: 63}, Minimums: quant.Minimums{Kind: quant.GroupMinimums, Max: 63}}),
	Pack:  packQ4_K,
	Parse: parseQ4_K,
}

func unpackQ4_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[144:] {
		d, dmin := getF16(src), getF16(src[2:])
		for g := range 8 {
			sc, m := scaleMin6(src[4:16], g)
			scale, minimum := d*float32(sc), dmin*float32(m)
			shift := g % 2 * 4
			for l, v := range src[16+g/2*32:][:32] {
				dst[32*g+l] = float32(scale*float32(v>>shift&15)) - minimum
			}
		}
	}
}

func packQ4_K(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	putF16(dst[2:], b.DMin)
	putScaleMin6(dst[4:16], b.Sc, b.M)
	for p := range 4 {
		putNibbles(dst[16+32*p:][:32], b.Codes[64*p:])
	}
}

func parseQ4_K(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), getF16(src[2:])
	for g := range 8 {
		b.Sc[g], b.M[g] = scaleMin6(src[4:16], g)
	}
	for p := range 4 {
		nibbles(b.Codes[64*p:], src[16+32*p:][:32])
	}
}
