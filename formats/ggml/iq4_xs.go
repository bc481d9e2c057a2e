package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// IQ4_XS holds 256 weights in 136 bytes, 4.25 bits per weight: a super-block of 8 groups of 32 on IQ4_NL's levels.
//
//	d        float16
//	scales_h uint16     bits 4 and 5 of the scale of group g are bits 2g and 2g+1
//	scales_l [4]byte    the low bits of group g in byte ⌊g/2⌋, in the high half for odd g
//	qs       [128]byte  16 bytes for each group, as in IQ4_NL
//
//	w = d·(sc − 32)·iq4Levels[q], q in 0..15, sc in 0..63
//
// The grid's scales are sc − 32.
var IQ4_XS = &Type{
	Format: kernels.Format{Name: "IQ4_XS", BlockLen: 256, BlockBytes: 136, Unpack: unpackIQ4_XS},
	ID:     23,
	Grid: fit.New(quant.Affine{Name: "IQ4_XS", Block: 256, Group: 32, CodeMin: 0, CodeMax: 15, Codebook: iq4Levels,
		Scales: quant.Scales{Super: true, Min: -32, Max: 31}}),
	Pack:  packIQ4_XS,
	Parse: parseIQ4_XS,
}

func unpackIQ4_XS(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[136:] {
		d := getF16(src)
		for g := range 8 {
			scale := d * float32(scaleIQ4_XS(src, g))
			out := dst[32*g : 32*g+32]
			for j, v := range src[8+16*g:][:16] {
				out[j] = scale * iq4Levels[v&15]
				out[j+16] = scale * iq4Levels[v>>4]
			}
		}
	}
}

// scaleIQ4_XS returns the scale of group g of the block src.
func scaleIQ4_XS(src []byte, g int) int8 {
	low := src[4+g/2] >> (g % 2 * 4) & 15
	high := byte(binary.LittleEndian.Uint16(src[2:])>>(2*g)) & 3
	return int8(low|high<<4) - 32
}

func packIQ4_XS(dst []byte, b *quant.Block) {
	putF16(dst, b.D)
	var high uint16
	clear(dst[4:8])
	for g, s := range b.Sc {
		sc := byte(s + 32)
		high |= uint16(sc>>4) << (2 * g)
		dst[4+g/2] |= sc & 15 << (g % 2 * 4)
		putNibbles(dst[8+16*g:][:16], b.Codes[32*g:])
	}
	putBits16(dst[2:], high)
}

func parseIQ4_XS(b *quant.Block, src []byte) {
	b.D, b.DMin = getF16(src), 0
	for g := range 8 {
		b.Sc[g], b.M[g] = scaleIQ4_XS(src, g), 0
		nibbles(b.Codes[32*g:], src[8+16*g:][:16])
	}
}
