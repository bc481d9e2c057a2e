package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
	"github.com/llmq/llmq/tensor"
)

// IQ1_M holds 256 weights in 56 bytes, 1.75 bits per weight: a super-block of 16 groups of 16, in words of 8.
//
//	qs     [32]byte   the low bits of the words
//	qh     [16]byte   four bits for each word, the low half first: bits 8 to 10, and whether ⅛ is subtracted
//	scales [4]uint16  the scale of group g in bits 3·(g%4) and above of number ⌊g/4⌋; the four numbers' highest four bits
//	                  are d, a float16, the lowest first
//
//	w = d·(2·sc + 1)·(level ± ⅛), sc in 0..7, levels −1, 0 and 1
//
// The grid's scales are 2·sc + 1, its codes eighths.
var IQ1_M = &Type{
	Format:    kernels.Format{Name: "IQ1_M", BlockLen: 256, BlockBytes: 56},
	ID:        29,
	ByRequest: true,
	Grid: fit.NewLattice(quant.Lattice{Name: "IQ1_M", Block: 256, Group: 16, Codebook: codebook1,
		Signs: quant.ShiftedWords, Step: 1. / 8, MaxScale: 15}),
	Pack:  packIQ1_M,
	Parse: parseIQ1_M,
}

func packIQ1_M(dst []byte, b *quant.Block) {
	clear(dst[32:48])
	for i := range 32 {
		codes := b.Codes[8*i:]
		shift := shiftOf(codes[0])
		word, _ := codebook1.Find(codes, shift)
		bits := byte(word >> 8)
		if shift < 0 {
			bits |= 8
		}
		dst[i] = byte(word)
		dst[32+i/2] |= bits << (i % 2 * 4)
	}
	d := tensor.ToF16(b.D)
	for i := range 4 {
		bits := d >> (4 * i) << 12
		for k := range 4 {
			bits |= uint16(b.Sc[4*i+k]/2) << (3 * k)
		}
		putBits16(dst[48+2*i:], bits)
	}
}

func parseIQ1_M(b *quant.Block, src []byte) {
	var d uint16
	for i := range 4 {
		bits := binary.LittleEndian.Uint16(src[48+2*i:])
		d |= bits >> 12 << (4 * i)
		for k := range 4 {
			b.Sc[4*i+k], b.M[4*i+k] = int8(2*(bits>>(3*k)&7)+1), 0
		}
	}
	b.D, b.DMin = tensor.F16(d), 0
	for i := range 32 {
		bits := src[32+i/2] >> (i % 2 * 4) & 15
		putShifted(b.Codes[8*i:], int(src[i])|int(bits&7)<<8, bits&8 != 0)
	}
}
