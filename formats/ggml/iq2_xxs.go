package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// IQ2_XXS holds 256 weights in 66 bytes, 2.0625 bits per weight: a super-block of 8 groups of 32, in words of 8.
//
//	d  float16
//	qs [8][8]byte  for each group 4 bytes, the words, then a uint32: 7 bits of signs for each of them, and above them sc
//
//	w = d·(sc + ½)/4·level, negative where the sign is set; sc in 0..15, levels 8, 25 and 43
//
// The sign of a word's eighth column is set if an odd number of the others are. The grid's scales are 2·sc + 1.
var IQ2_XXS = &Type{
	Format: kernels.Format{Name: "IQ2_XXS", BlockLen: 256, BlockBytes: 66},
	ID:     16,
	Grid: fit.NewLattice(quant.Lattice{Name: "IQ2_XXS", Block: 256, Group: 32, Codebook: codebook2XXS,
		Signs: quant.EvenSigns, Step: 1. / 8, MaxScale: 31}),
	Pack:  packIQ2_XXS,
	Parse: parseIQ2_XXS,
}

func packIQ2_XXS(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	for g, sc := range b.Sc {
		out := dst[2+8*g:][:8]
		bits := uint32(sc/2) << 28
		for i := range 4 {
			word, signs := codebook2XXS.Find(b.Codes[32*g+8*i:], 0)
			out[i] = byte(word)
			bits |= uint32(signs&127) << (7 * i)
		}
		binary.LittleEndian.PutUint32(out[4:], bits)
	}
}

func parseIQ2_XXS(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), 0
	for g := range b.Sc {
		in := src[2+8*g:][:8]
		bits := binary.LittleEndian.Uint32(in[4:])
		b.Sc[g], b.M[g] = int8(2*(bits>>28)+1), 0
		for i := range 4 {
			codebook2XXS.Put(b.Codes[32*g+8*i:], int(in[i]), evenSigns(bits>>(7*i)))
		}
	}
}

// evenSigns completes the low seven bits to eight of which an even number are set.
func evenSigns(seven uint32) byte {
	s := byte(seven & 127)
	p := s ^ s>>4
	p ^= p >> 2
	p ^= p >> 1
	return s | p<<7
}
