package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// iq4Levels are the sixteen levels of IQ4_NL and IQ4_XS (kvalues_iq4nl in ggml-common.h).
var iq4Levels = []float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// IQ4_NL holds 32 weights in 18 bytes, 4.5 bits per weight. The levels lie closer together near zero:
//
//	d  float16
//	qs [16]byte  weight j in the low half of byte j, weight j+16 in the high half
//
//	w = d·iq4Levels[q], q in 0..15
var IQ4_NL = &Type{
	Format: kernels.Format{Name: "IQ4_NL", BlockLen: 32, BlockBytes: 18, Unpack: unpackIQ4_NL},
	ID:     20,
	Grid:   fit.New(quant.Affine{Name: "IQ4_NL", Block: 32, Group: 32, CodeMin: 0, CodeMax: 15, Codebook: iq4Levels}),
	Pack:   packIQ4_NL,
	Parse:  parseIQ4_NL,
}

func unpackIQ4_NL(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[18:] {
		d := getF16(src)
		for j, v := range src[2:18] {
			dst[j] = d * iq4Levels[v&15]
			dst[j+16] = d * iq4Levels[v>>4]
		}
	}
}

func packIQ4_NL(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	putNibbles(dst[2:18], b.Codes)
}

func parseIQ4_NL(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src), 0, 1, 0
	nibbles(b.Codes, src[2:18])
}
