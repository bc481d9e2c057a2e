package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q2_K holds 256 weights in 84 bytes, 2.625 bits per weight: a super-block of 16 groups of 16.
//
//	scales [16]byte  the scale of group g in the low half of byte g, its minimum in the high half
//	qs     [64]byte  each half of the super-block has 32 bytes; weight 32·j + l of a half is bits 2j and 2j+1 of byte l
//	d      float16
//	dmin   float16
//
//	w = d·sc·q − dmin·m, q in 0..3, sc and m in 0..15
var Q2_K = &Type{
	Format: kernels.Format{Name: "Q2_K", BlockLen: 256, BlockBytes: 84, Unpack: unpackQ2_K},
	ID:     10,
	Grid: fit.New(quant.Affine{Name: "Q2_K", Block: 256, Group: 16, CodeMin: 0, CodeMax: 3,
		Scales: quant.Scales{Super: true, Min: 0, Max: 15}, Minimums: quant.Minimums{Kind: quant.GroupMinimums, Max: 15}}),
	Pack:  packQ2_K,
	Parse: parseQ2_K,
}

func unpackQ2_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[84:] {
		d, dmin := getF16(src[80:]), getF16(src[82:])
		for i := range 256 {
			s := src[i/16]
			scale, minimum := d*float32(s&15), dmin*float32(s>>4)
			q := src[16+i/128*32+i%32] >> (i % 128 / 32 * 2) & 3
			dst[i] = float32(scale*float32(q)) - minimum
		}
	}
}

func packQ2_K(dst []byte, b *quant.Block) {
	for g := range 16 {
		dst[g] = byte(b.Sc[g]) | byte(b.M[g])<<4
	}
	put2(dst[16:80], b.Codes)
	putF16(dst[80:], b.D)
	putF16(dst[82:], b.DMin)
}

func parseQ2_K(b *quant.Block, src []byte) {
	for g := range 16 {
		b.Sc[g], b.M[g] = int8(src[g]&15), int8(src[g]>>4)
	}
	get2(b.Codes, src[16:80])
	b.D, b.DMin = getF16(src[80:]), getF16(src[82:])
}

// get2 reads 256 two-bit numbers as Q2_K and Q3_K keep them.
func get2(dst []int8, src []byte) {
	for i := range 256 {
		dst[i] = int8(src[i/128*32+i%32] >> (i % 128 / 32 * 2) & 3)
	}
}

// put2 stores the low two bits of 256 numbers as get2 reads them.
func put2(dst []byte, src []int8) {
	for n := range 2 {
		q := src[128*n:]
		for l := range 32 {
			dst[32*n+l] = byte(q[l]&3 | q[l+32]&3<<2 | q[l+64]&3<<4 | q[l+96]&3<<6)
		}
	}
}
