package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/encode"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q8_0 holds 32 weights in 34 bytes, 8.5 bits per weight:
//
//	d  float16
//	qs [32]int8
//
//	w = d·q, q in −128..127
var Q8_0 = &Type{
	Format: kernels.Format{Name: "Q8_0", BlockLen: 32, BlockBytes: 34, Unpack: unpackQ8_0},
	ID:     8,
	Grid:   fit.New(quant.Affine{Name: "Q8_0", Block: 32, Group: 32, CodeMin: -128, CodeMax: 127}),
	Pack:   packQ8_0,
	Parse:  parseQ8_0,
	round:  encode.Q8_0,
}

func unpackQ8_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[34:] {
		d := getF16(src)
		for j, v := range src[2:34] {
			dst[j] = d * float32(int8(v))
		}
	}
}

func packQ8_0(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	for j, q := range b.Codes {
		dst[2+j] = byte(q)
	}
}

func parseQ8_0(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), 0, 1, 0
	for j, v := range src[2:34] {
		b.Codes[j] = int8(v)
	}
}
