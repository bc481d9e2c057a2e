package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q4_1 holds 32 weights in 20 bytes, 5 bits per weight:
//
//	d  float16
//	m  float16   of either sign
//	qs [16]byte  weight j in the low half of byte j, weight j+16 in the high half
//
//	w = d·q + m, q in 0..15
//
// The grid subtracts its minimum: DMin is −m.
var Q4_1 = &Type{
	Format: kernels.Format{Name: "Q4_1", BlockLen: 32, BlockBytes: 20, Unpack: unpackQ4_1},
	ID:     3,
	Grid: fit.New(quant.Affine{Name: "Q4_1", Block: 32, Group: 32, CodeMin: 0, CodeMax: 15,
		Minimums: quant.Minimums{Kind: quant.BlockMinimum}}),
	Pack:  packQ4_1,
	Parse: parseQ4_1,
}

func unpackQ4_1(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[20:] {
		d, m := getF16(src), getF16(src[2:])
		for j, v := range src[4:20] {
			dst[j] = float32(d*float32(v&15)) + m
			dst[j+16] = float32(d*float32(v>>4)) + m
		}
	}
}

func packQ4_1(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	putF16(dst[2:], -b.DMin)
	putNibbles(dst[4:20], b.Codes)
}

func parseQ4_1(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), -getF16(src[2:]), 1, 1
	nibbles(b.Codes, src[4:20])
}
