package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/encode"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q4_0 holds 32 weights in 18 bytes, 4.5 bits per weight:
//
//	d  float16
//	qs [16]byte  weight j in the low half of byte j, weight j+16 in the high half
//
//	w = d·(q − 8), q in 0..15
//
// The grid's codes are q − 8.
var Q4_0 = &Type{
	Format: kernels.Format{Name: "Q4_0", BlockLen: 32, BlockBytes: 18, Unpack: unpackQ4_0},
	ID:     2,
	Grid:   fit.New(quant.Affine{Name: "Q4_0", Block: 32, Group: 32, CodeMin: -8, CodeMax: 7}),
	Pack:   packQ4_0,
	Parse:  parseQ4_0,
	round:  encode.Q4_0,
}

func unpackQ4_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[18:] {
		d := getF16(src)
		for j, v := range src[2:18] {
			dst[j] = d * float32(int(v&15)-8)
			dst[j+16] = d * float32(int(v>>4)-8)
		}
	}
}

func packQ4_0(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	for j := range 16 {
		dst[2+j] = byte(b.Codes[j]+8) | byte(b.Codes[j+16]+8)<<4
	}
}

func parseQ4_0(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), 0, 1, 0
	nibbles(b.Codes, src[2:18])
	for j := range b.Codes {
		b.Codes[j] -= 8
	}
}
