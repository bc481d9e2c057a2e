package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q1_0 holds 128 weights in 18 bytes, 1.125 bits per weight:
//
//	d  float16
//	qs [16]byte  weight j is bit j%8 of byte ⌊j/8⌋
//
//	w = d·(2q − 1), q in 0..1
var Q1_0 = &Type{
	Format:    kernels.Format{Name: "Q1_0", BlockLen: 128, BlockBytes: 18, Unpack: unpackQ1_0},
	ID:        41,
	ByRequest: true,
	Grid: fit.New(quant.Affine{Name: "Q1_0", Block: 128, Group: 128, CodeMin: 0, CodeMax: 1,
		Codebook: []float32{-1, 1}}),
	Pack:  packQ1_0,
	Parse: parseQ1_0,
}

func unpackQ1_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[128:], src[18:] {
		d := getF16(src)
		for j := range 128 {
			dst[j] = -d
			if src[2+j/8]>>(j%8)&1 != 0 {
				dst[j] = d
			}
		}
	}
}

func packQ1_0(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	clear(dst[2:18])
	for j, c := range b.Codes {
		dst[2+j/8] |= byte(c) << (j % 8)
	}
}

func parseQ1_0(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), 0, 1, 0
	for j := range b.Codes {
		b.Codes[j] = int8(src[2+j/8] >> (j % 8) & 1)
	}
}
