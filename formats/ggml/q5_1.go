package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Q5_1 holds 32 weights in 24 bytes, 6 bits per weight:
//
//	d  float16
//	m  float16   of either sign
//	qh uint32    bit j is bit 4 of weight j
//	qs [16]byte  the low bits of weight j in the low half of byte j, of weight j+16 in the high half
//
//	w = d·q + m, q in 0..31
//
// The grid subtracts its minimum: DMin is −m.
var Q5_1 = &Type{
	Format: kernels.Format{Name: "Q5_1", BlockLen: 32, BlockBytes: 24, Unpack: unpackQ5_1},
	ID:     7,
	Grid: fit.New(quant.Affine{Name: "Q5_1", Block: 32, Group: 32, CodeMin: 0, CodeMax: 31,
		Minimums: quant.Minimums{Kind: quant.BlockMinimum}}),
	Pack:  packQ5_1,
	Parse: parseQ5_1,
}

func unpackQ5_1(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[24:] {
		d, m := getF16(src), getF16(src[2:])
		qh := binary.LittleEndian.Uint32(src[4:])
		for j, v := range src[8:24] {
			dst[j] = float32(d*float32(uint32(v&15)|qh>>j&1<<4)) + m
			dst[j+16] = float32(d*float32(uint32(v>>4)|qh>>(j+16)&1<<4)) + m
		}
	}
}

func packQ5_1(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	putF16(dst[2:], -b.DMin)
	put5(dst[4:24], b.Codes)
}

func parseQ5_1(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), -getF16(src[2:]), 1, 1
	get5(b.Codes, src[4:24])
}
