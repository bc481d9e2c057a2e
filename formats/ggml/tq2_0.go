package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// TQ2_0 holds 256 weights in 66 bytes, 2.0625 bits per weight:
//
//	qs [64]byte  as Q2_K's
//	d  float16
//
//	w = d·(q − 1), q in 0..3
//
// llama-quantize writes ternary weights, q up to 2; every reader takes 3 for twice the scale. The grid's codes are q − 1.
var TQ2_0 = &Type{
	Format:    kernels.Format{Name: "TQ2_0", BlockLen: 256, BlockBytes: 66, Unpack: unpackTQ2_0},
	ID:        35,
	ByRequest: true,
	Grid:      fit.New(quant.Affine{Name: "TQ2_0", Block: 256, Group: 256, CodeMin: -1, CodeMax: 2}),
	Pack:      packTQ2_0,
	Parse:     parseTQ2_0,
}

func unpackTQ2_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[66:] {
		d := getF16(src[64:])
		for i := range 256 {
			q := src[i/128*32+i%32] >> (i % 128 / 32 * 2) & 3
			dst[i] = float32(int(q)-1) * d
		}
	}
}

func packTQ2_0(dst []byte, b *quant.Block) {
	var q [256]int8
	for j, c := range b.Codes {
		q[j] = c + 1
	}
	put2(dst[:64], q[:])
	putF16(dst[64:], b.D)
}

func parseTQ2_0(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src[64:]), 0, 1, 0
	get2(b.Codes, src[:64])
	for j := range b.Codes {
		b.Codes[j]--
	}
}
