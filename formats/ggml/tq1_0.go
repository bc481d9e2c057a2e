package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// TQ1_0 holds 256 weights in 54 bytes, 1.6875 bits per weight. Five digits to the base of 3 share a byte:
//
//	qs [48]byte  digit n of byte j is weight 32·n + j for the first 32 bytes, 160 + 16·n + j − 32 for the others
//	qh [4]byte   digit n of byte j is weight 240 + 4·n + j, for n < 4
//	d  float16
//
//	w = d·(q − 1), q in 0..2
//
// A byte is a fraction of 256: v digits, the first the most significant, are stored as ⌈v·256/3⁵⌉, and 3 times it carries
// the first digit into bit 8. The grid's codes are q − 1.
var TQ1_0 = &Type{
	Format:    kernels.Format{Name: "TQ1_0", BlockLen: 256, BlockBytes: 54, Unpack: unpackTQ1_0},
	ID:        34,
	ByRequest: true,
	Grid:      fit.New(quant.Affine{Name: "TQ1_0", Block: 256, Group: 256, CodeMin: -1, CodeMax: 1}),
	Pack:      packTQ1_0,
	Parse:     parseTQ1_0,
}

// parts1_0 are TQ1_0's bytes from, to, and the weight that is the first digit of the first of them.
var parts1_0 = [3]struct{ from, to, first, digits int }{{0, 32, 0, 5}, {32, 48, 160, 5}, {48, 52, 240, 4}}

func unpackTQ1_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[54:] {
		d := getF16(src[52:])
		for _, p := range parts1_0 {
			n := p.to - p.from
			for j, v := range src[p.from:p.to] {
				for i := range p.digits {
					dst[p.first+i*n+j] = float32(int(uint16(v)*3>>8)-1) * d
					v *= 3
				}
			}
		}
	}
}

func packTQ1_0(dst []byte, b *quant.Block) {
	for _, p := range parts1_0 {
		n := p.to - p.from
		for j := range n {
			v := 0
			for i := range 5 {
				v *= 3
				if i < p.digits {
					v += int(b.Codes[p.first+i*n+j]) + 1
				}
			}
			dst[p.from+j] = byte((v*256 + 242) / 243)
		}
	}
	putF16(dst[52:], b.D)
}

func parseTQ1_0(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = getF16(src[52:]), 0, 1, 0
	for _, p := range parts1_0 {
		n := p.to - p.from
		for j, v := range src[p.from:p.to] {
			for i := range p.digits {
				b.Codes[p.first+i*n+j] = int8(uint16(v)*3>>8) - 1
				v *= 3
			}
		}
	}
}
