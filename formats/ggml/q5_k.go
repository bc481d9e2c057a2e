package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q5_K holds 256 weights in 176 bytes, 5.5 bits per weight: a super-block of 8 groups of 32.
//
//	d      float16
//	dmin   float16
//	scales [12]byte   eight 6-bit scales and eight 6-bit minima: see scaleMin6
//	qh     [32]byte   bit 4 of weight l of group g is bit g of byte l
//	qs     [128]byte  the low bits, as in Q4_K
//
//	w = d·sc·q − dmin·m, q in 0..31, sc and m in 0..63
var Q5_K = &Type{
	Format: kernels.Format{Name: "Q5_K", BlockLen: 256, BlockBytes: 176, Unpack: unpackQ5_K},
	ID:     13,
	Grid: fit.New(quant.Affine{Name: "Q5_K", Block: 256, Group: 32, CodeMin: 0, CodeMax: 31,
		Scales: quant.Scales{Super: true, Min: 0, Max: 63}, Minimums: quant.Minimums{Kind: quant.GroupMinimums, Max: 63}}),
	Pack:  packQ5_K,
	Parse: parseQ5_K,
}

func unpackQ5_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[176:] {
		d, dmin := getF16(src), getF16(src[2:])
		for g := range 8 {
			sc, m := scaleMin6(src[4:16], g)
			scale, minimum := d*float32(sc), dmin*float32(m)
			shift := g % 2 * 4
			for l, v := range src[48+g/2*32:][:32] {
				q := v>>shift&15 | src[16+l]>>g&1<<4
				dst[32*g+l] = float32(scale*float32(q)) - minimum
			}
		}
	}
}

func packQ5_K(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	putF16(dst[2:], b.DMin)
	putScaleMin6(dst[4:16], b.Sc, b.M)
	qh := dst[16:48]
	clear(qh)
	for i, c := range b.Codes {
		qh[i%32] |= byte(c>>4) << (i / 32)
	}
	for p := range 4 {
		putNibbles(dst[48+32*p:][:32], b.Codes[64*p:])
	}
}

func parseQ5_K(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), getF16(src[2:])
	for g := range 8 {
		b.Sc[g], b.M[g] = scaleMin6(src[4:16], g)
	}
	for p := range 4 {
		nibbles(b.Codes[64*p:], src[48+32*p:][:32])
	}
	for i := range b.Codes {
		b.Codes[i] |= int8(src[16+i%32]>>(i/32)&1) << 4
	}
}
