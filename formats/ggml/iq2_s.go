package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// IQ2_S holds 256 weights in 82 bytes, 2.5625 bits per weight: a super-block of 16 groups of 16, in words of 8.
//
//	d      float16
//	qs     [32]byte  the low bits of the words
//	signs  [32]byte  of the columns of each word
//	qh     [8]byte   bits 8 and 9 of word i are bits 2·(i%4) and above of byte ⌊i/4⌋
//	scales [8]byte   as IQ2_XS's
//
//	w = d·(sc + ½)/4·level, negative where the sign is set; sc in 0..15, levels 8, 25 and 43
//
// The grid's scales are 2·sc + 1.
var IQ2_S = &Type{
	Format: kernels.Format{Name: "IQ2_S", BlockLen: 256, BlockBytes: 82},
	ID:     22,
	Grid: fit.NewLattice(quant.Lattice{Name: "IQ2_S", Block: 256, Group: 16, Codebook: codebook2S,
		Signs: quant.FreeSigns, Step: 1. / 8, MaxScale: 31}),
	Pack:  packIQ2_S,
	Parse: parseIQ2_S,
}

func packIQ2_S(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	clear(dst[66:74])
	for i := range 32 {
		word, signs := codebook2S.Find(b.Codes[8*i:], 0)
		dst[2+i], dst[34+i] = byte(word), signs
		dst[66+i/4] |= byte(word>>8) << (i % 4 * 2)
	}
	putOddScales(dst[74:82], b.Sc)
}

func parseIQ2_S(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), 0
	for i := range 32 {
		word := int(src[2+i]) | int(src[66+i/4]>>(i%4*2)&3)<<8
		codebook2S.Put(b.Codes[8*i:], word, src[34+i])
	}
	oddScales(b, src[74:82])
}
