package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q6_K holds 256 weights in 210 bytes, 6.5625 bits per weight: a super-block of 16 groups of 16.
//
//	ql     [128]byte  the low four bits; each half of the super-block has 64 bytes, whose low halves are its weights 0 to
//	                  63 and whose high halves its weights 64 to 127
//	qh     [64]byte   the high two bits, as the low ones of Q2_K
//	scales [16]int8
//	d      float16
//
//	w = d·sc·(q − 32), q in 0..63, sc in −128..127
//
// The grid's codes are q − 32.
var Q6_K = &Type{
	Format: kernels.Format{Name: "Q6_K", BlockLen: 256, BlockBytes: 210, Unpack: unpackQ6_K},
	ID:     14,
	Grid: fit.New(quant.Affine{Name: "Q6_K", Block: 256, Group: 16, CodeMin: -32, CodeMax: 31,
		Scales: quant.Scales{Super: true, Min: -128, Max: 127}}),
	Pack:  packQ6_K,
	Parse: parseQ6_K,
}

func unpackQ6_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[210:] {
		d := getF16(src[208:])
		for i := range 256 {
			low := int(src[i/128*64+i%64] >> (i % 128 / 64 * 4) & 15)
			high := int(src[128+i/128*32+i%32] >> (i % 128 / 32 * 2) & 3)
			dst[i] = float32(d*float32(int8(src[192+i/16]))) * float32(low|high<<4-32)
		}
	}
}

func packQ6_K(dst []byte, b *quant.Block) {
	var q, high [256]int8
	for i, c := range b.Codes {
		q[i] = c + 32
		high[i] = q[i] >> 4
	}
	putNibbles(dst[:64], q[:128])
	putNibbles(dst[64:128], q[128:])
	put2(dst[128:192], high[:])
	for g, s := range b.Sc {
		dst[192+g] = byte(s)
	}
	putF16(dst[208:], b.D)
}

func parseQ6_K(b *quant.Block, src []byte) {
	var high [256]int8
	nibbles(b.Codes[:128], src[:64])
	nibbles(b.Codes[128:], src[64:128])
	get2(high[:], src[128:192])
	for i := range b.Codes {
		b.Codes[i] += high[i]<<4 - 32
	}
	for g := range b.Sc {
		b.Sc[g], b.M[g] = int8(src[192+g]), 0
	}
	b.D, b.DMin = getF16(src[208:]), 0
}
