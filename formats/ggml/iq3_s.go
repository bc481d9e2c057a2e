package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// IQ3_S holds 256 weights in 110 bytes, 3.4375 bits per weight: a super-block of 8 groups of 32, in words of 4.
//
//	d      float16
//	qs     [64]byte  the low bits of the words
//	qh     [8]byte   bit 8 of word i is bit i%8 of byte ⌊i/8⌋
//	signs  [32]byte  of each 8 columns
//	scales [4]byte   the scale of group g in byte ⌊g/2⌋, in the high half for odd g
//
//	w = d·(2·sc + 1)·level, negative where the sign is set; sc in 0..15, levels 1, 3, 5, … 15
//
// The grid's scales are 2·sc + 1.
var IQ3_S = &Type{
	Format: kernels.Format{Name: "IQ3_S", BlockLen: 256, BlockBytes: 110},
	ID:     21,
	Grid: fit.NewLattice(quant.Lattice{Name: "IQ3_S", Block: 256, Group: 32, Codebook: codebook3S,
		Signs: quant.FreeSigns, Step: 1, MaxScale: 31}),
	Pack:  packIQ3_S,
	Parse: parseIQ3_S,
}

func packIQ3_S(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	clear(dst[66:106])
	for i := range 64 {
		word, signs := codebook3S.Find(b.Codes[4*i:], 0)
		dst[2+i] = byte(word)
		dst[66+i/8] |= byte(word>>8) << (i % 8)
		dst[74+i/2] |= signs << (i % 2 * 4)
	}
	putOddScales(dst[106:110], b.Sc)
}

func parseIQ3_S(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), 0
	for i := range 64 {
		word := int(src[2+i]) | int(src[66+i/8]>>(i%8)&1)<<8
		codebook3S.Put(b.Codes[4*i:], word, src[74+i/2]>>(i%2*4)&15)
	}
	oddScales(b, src[106:110])
}
