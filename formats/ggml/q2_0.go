package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q2_0 holds 64 weights in 18 bytes, 2.25 bits per weight:
//
//	d  float16
//	qs [16]byte  weight 4·j + k is bits 2k and 2k+1 of byte j
//
//	w = d·(q − 1), q in 0..3
//
// The grid's codes are q − 1.
var Q2_0 = &Type{
	Format:    kernels.Format{Name: "Q2_0", BlockLen: 64, BlockBytes: 18, Unpack: unpackQ2_0},
	ID:        42,
	ByRequest: true,
	Grid:      fit.New(quant.Affine{Name: "Q2_0", Block: 64, Group: 64, CodeMin: -1, CodeMax: 2}),
	Pack:      packQ2_0,
	Parse:     parseQ2_0,
}

func unpackQ2_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[64:], src[18:] {
		d := getF16(src)
		for j := range 64 {
			dst[j] = float32(int(src[2+j/4]>>(j%4*2)&3)-1) * d
		}
	}
}

func packQ2_0(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	for j := range 16 {
		q := b.Codes[4*j:]
		dst[2+j] = byte(q[0]+1) | byte(q[1]+1)<<2 | byte(q[2]+1)<<4 | byte(q[3]+1)<<6
	}
}

func parseQ2_0(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), 0, 1, 0
	for j := range b.Codes {
		b.Codes[j] = int8(src[2+j/4]>>(j%4*2)&3) - 1
	}
}
