package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// IQ1_S holds 256 weights in 50 bytes, 1.5625 bits per weight: a super-block of 8 groups of 32, in words of 8.
//
//	d  float16
//	qs [32]byte   the low bits of the words
//	qh [8]uint16  for each group bits 8 to 10 of its words, from bit 0 on; sc in bits 12 to 14; whether ⅛ is subtracted in bit 15
//
//	w = d·(2·sc + 1)·(level ± ⅛), sc in 0..7, levels −1, 0 and 1
//
// The grid's scales are 2·sc + 1, its codes eighths.
var IQ1_S = &Type{
	Format:    kernels.Format{Name: "IQ1_S", BlockLen: 256, BlockBytes: 50},
	ID:        19,
	ByRequest: true,
	Grid: fit.NewLattice(quant.Lattice{Name: "IQ1_S", Block: 256, Group: 32, Codebook: codebook1,
		Signs: quant.ShiftedGroups, Step: 1. / 8, MaxScale: 15}),
	Pack:  packIQ1_S,
	Parse: parseIQ1_S,
}

func packIQ1_S(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	for g, sc := range b.Sc {
		bits := uint16(sc/2) << 12
		shift := shiftOf(b.Codes[32*g])
		if shift < 0 {
			bits |= 1 << 15
		}
		for i := range 4 {
			word, _ := codebook1.Find(b.Codes[32*g+8*i:], shift)
			dst[2+4*g+i] = byte(word)
			bits |= uint16(word>>8) << (3 * i)
		}
		putBits16(dst[34+2*g:], bits)
	}
}

func parseIQ1_S(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), 0
	for g := range b.Sc {
		bits := binary.LittleEndian.Uint16(src[34+2*g:])
		b.Sc[g], b.M[g] = int8(2*(bits>>12&7)+1), 0
		for i := range 4 {
			putShifted(b.Codes[32*g+8*i:], int(src[2+4*g+i])|int(bits>>(3*i)&7)<<8, bits>>15 != 0)
		}
	}
}

// putShifted sets eight codes to a word of IQ1, an eighth above or below.
func putShifted(codes []int8, word int, below bool) {
	codebook1.Put(codes, word, 0)
	shift := int8(1)
	if below {
		shift = -1
	}
	for j := range codes[:8] {
		codes[j] += shift
	}
}

// shiftOf is 1 for a code that is an eighth above a level, −1 for one below.
func shiftOf(code int8) int8 {
	if code&7 == 1 {
		return 1
	}
	return -1
}
