package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// IQ2_XS holds 256 weights in 74 bytes, 2.3125 bits per weight: a super-block of 16 groups of 16, in words of 8.
//
//	d      float16
//	qs     [32]uint16  for each 8 columns the word in the low 9 bits, the signs of the first 7 above
//	scales [8]byte     the scale of group g in byte ⌊g/2⌋, in the high half for odd g
//
//	w = d·(sc + ½)/4·level, negative where the sign is set; sc in 0..15, levels 8, 25 and 43
//
// The sign of a word's eighth column is set if an odd number of the others are. The grid's scales are 2·sc + 1.
var IQ2_XS = &Type{
	Format: kernels.Format{Name: "IQ2_XS", BlockLen: 256, BlockBytes: 74},
	ID:     17,
	Grid: fit.NewLattice(quant.Lattice{Name: "IQ2_XS", Block: 256, Group: 16, Codebook: codebook2XS,
		Signs: quant.EvenSigns, Step: 1. / 8, MaxScale: 31}),
	Pack:  packIQ2_XS,
	Parse: parseIQ2_XS,
}

func packIQ2_XS(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	for i := range 32 {
		word, signs := codebook2XS.Find(b.Codes[8*i:], 0)
		putBits16(dst[2+2*i:], uint16(word)|uint16(signs&127)<<9)
	}
	putOddScales(dst[66:74], b.Sc)
}

func parseIQ2_XS(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), 0
	for i := range 32 {
		q := binary.LittleEndian.Uint16(src[2+2*i:])
		codebook2XS.Put(b.Codes[8*i:], int(q&511), evenSigns(uint32(q>>9)))
	}
	oddScales(b, src[66:74])
}

// oddScales reads the scales of IQ2_XS, IQ2_S and IQ3_S: 2·sc + 1 for the four bits of sc, two groups to a byte.
func oddScales(b *quant.Block, src []byte) {
	for g := range b.Sc {
		b.Sc[g], b.M[g] = int8(2*(src[g/2]>>(g%2*4)&15)+1), 0
	}
}

// putOddScales stores scales as oddScales reads them.
func putOddScales(dst []byte, sc []int8) {
	for i := range dst {
		dst[i] = byte(sc[2*i]/2) | byte(sc[2*i+1]/2)<<4
	}
}
