package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// IQ3_XXS holds 256 weights in 98 bytes, 3.0625 bits per weight: a super-block of 8 groups of 32, in words of 4.
//
//	d  float16
//	qs [64]byte   the words
//	s  [8]uint32  for each group 7 bits of signs for each 8 columns, and above them sc
//
//	w = d·(sc + ½)/2·level, negative where the sign is set; sc in 0..15, levels 4, 12, 20, … 52, and 62
//
// The sign of each eighth column is set if an odd number of the seven before are. The grid's scales are 2·sc + 1.
var IQ3_XXS = &Type{
	Format: kernels.Format{Name: "IQ3_XXS", BlockLen: 256, BlockBytes: 98},
	ID:     18,
	Grid: fit.NewLattice(quant.Lattice{Name: "IQ3_XXS", Block: 256, Group: 32, Codebook: codebook3XXS,
		Signs: quant.EvenSigns, Step: 1. / 4, MaxScale: 31}),
	Pack:  packIQ3_XXS,
	Parse: parseIQ3_XXS,
}

func packIQ3_XXS(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	for g, sc := range b.Sc {
		bits := uint32(sc/2) << 28
		for i := range 4 {
			codes := b.Codes[32*g+8*i:]
			word, signs := codebook3XXS.Find(codes, 0)
			second, more := codebook3XXS.Find(codes[4:], 0)
			dst[2+8*g+2*i], dst[2+8*g+2*i+1] = byte(word), byte(second)
			bits |= uint32((signs|more<<4)&127) << (7 * i)
		}
		binary.LittleEndian.PutUint32(dst[66+4*g:], bits)
	}
}

func parseIQ3_XXS(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), 0
	for g := range b.Sc {
		bits := binary.LittleEndian.Uint32(src[66+4*g:])
		b.Sc[g], b.M[g] = int8(2*(bits>>28)+1), 0
		for i := range 4 {
			codes, words, signs := b.Codes[32*g+8*i:], src[2+8*g+2*i:], evenSigns(bits>>(7*i))
			codebook3XXS.Put(codes, int(words[0]), signs&15)
			codebook3XXS.Put(codes[4:], int(words[1]), signs>>4)
		}
	}
}
