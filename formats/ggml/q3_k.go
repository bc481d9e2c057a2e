package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q3_K holds 256 weights in 110 bytes, 3.4375 bits per weight: a super-block of 16 groups of 16.
//
//	hmask  [32]byte  bit 2 of weight 32·j + l is bit j of byte l
//	qs     [64]byte  the low bits, as in Q2_K
//	scales [12]byte  the low nibbles of the scales of groups g and g+8 share byte g; the two bits above those of group
//	                 g are bits 2⌊g/4⌋ and 2⌊g/4⌋+1 of byte 8 + g mod 4
//	d      float16
//
//	w = d·(sc − 32)·(q − 4), q in 0..7, sc in 0..63
//
// The grid's codes are q − 4 and its scales sc − 32.
var Q3_K = &Type{
	Format: kernels.Format{Name: "Q3_K", BlockLen: 256, BlockBytes: 110, Unpack: unpackQ3_K},
	ID:     11,
	Grid: fit.New(quant.Affine{Name: "Q3_K", Block: 256, Group: 16, CodeMin: -4, CodeMax: 3,
		Scales: quant.Scales{Super: true, Min: -32, Max: 31}}),
	Pack:  packQ3_K,
	Parse: parseQ3_K,
}

func unpackQ3_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[110:] {
		d := getF16(src[108:])
		for i := range 256 {
			low := int(src[32+i/128*32+i%32] >> (i % 128 / 32 * 2) & 3)
			high := int(src[i%32] >> (i / 32) & 1)
			dst[i] = float32(d*float32(scaleQ3_K(src[96:108], i/16))) * float32(low|high<<2-4)
		}
	}
}

// scaleQ3_K returns the scale of group g.
func scaleQ3_K(src []byte, g int) int8 {
	low := src[g%8] >> (g / 8 * 4) & 15
	high := src[8+g%4] >> (g / 4 * 2) & 3
	return int8(low|high<<4) - 32
}

func packQ3_K(dst []byte, b *quant.Block) {
	clear(dst)
	var q [256]int8
	for i, c := range b.Codes {
		q[i] = c + 4
		dst[i%32] |= byte(q[i]>>2) << (i / 32)
	}
	put2(dst[32:96], q[:])
	for g, s := range b.Sc {
		sc := byte(s + 32)
		dst[96+g%8] |= sc & 15 << (g / 8 * 4)
		dst[104+g%4] |= sc >> 4 << (g / 4 * 2)
	}
	putF16(dst[108:], b.D)
}

func parseQ3_K(b *quant.Block, src []byte) {
	get2(b.Codes, src[32:96])
	for i := range b.Codes {
		b.Codes[i] += int8(src[i%32]>>(i/32)&1<<2) - 4
	}
	for g := range b.Sc {
		b.Sc[g], b.M[g] = scaleQ3_K(src[96:108], g), 0
	}
	b.D, b.DMin = getF16(src[108:]), 0
}
