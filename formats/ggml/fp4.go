package ggml

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
)

// Four-bit floating-point numbers, E2M1, under scales of eight bits (OCP Microscaling Formats, version 1.0; NVIDIA NVFP4).

// e2m1 are the values of E2M1 from −6 to 6, doubled to be whole numbers; the scales are halved in return (kvalues_mxfp4 in
// ggml-common.h). A grid's code is the place of a value from that of 0. Of the format's two zeros grids know the positive.
var e2m1 = []float32{-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12}

const e2m1Max = 7 // the code of the largest

// e8m0 are the halved values of E8M0, powers of two from 2⁻¹²⁸ on: byte e is 2^(e−127). That of 255, which is not a number,
// is what ggml makes of it.
var e8m0 = table(func(e int) float64 { return math.Ldexp(1, e-128) })

// ue4m3 are the halved values of E4M3 without its sign, which is not looked at. 127, which is not a number, is 0.
var ue4m3 = table(func(v int) float64 {
	exponent, fraction := v>>3&15, float64(v&7)
	switch {
	case v == 127:
		return 0
	case exponent == 0:
		return math.Ldexp(fraction, -10)
	}
	return math.Ldexp(8+fraction, exponent-11)
})

func table(value func(byte int) float64) *[256]float32 {
	t := new([256]float32)
	for i := range t {
		t[i] = float32(value(i))
	}
	return t
}

// MXFP4 holds 32 weights in 17 bytes, 4.25 bits per weight:
//
//	e  byte      E8M0
//	qs [16]byte  weight j in the low half of byte j, weight j+16 in the high half: E2M1
//
//	w = 2^(e−127)·E2M1(q)
var MXFP4 = &Type{
	Format:    kernels.Format{Name: "MXFP4", BlockLen: 32, BlockBytes: 17, Unpack: unpackMXFP4},
	ID:        39,
	ByRequest: true,
	// Scales outside of these are read; the quotients of weights by them, and their products with levels, may overflow.
	Grid: fit.New(quant.Affine{Name: "MXFP4", Block: 32, Group: 32, CodeMin: -e2m1Max, CodeMax: e2m1Max, Codebook: e2m1,
		Scales: quant.Scales{Floats: e8m0, Min: 8, Max: 251}}),
	Pack:  packMXFP4,
	Parse: parseMXFP4,
}

func unpackMXFP4(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[17:] {
		unpackE2M1(dst[:32], src[1:17], e8m0[src[0]])
	}
}

func packMXFP4(dst []byte, b *quant.Block) {
	dst[0] = quant.FloatByte(b.Sc[0])
	packE2M1(dst[1:17], b.Codes)
}

func parseMXFP4(b *quant.Block, src []byte) {
	b.D, b.DMin, b.Sc[0], b.M[0] = 0, 0, quant.FloatCode(src[0]), 0
	parseE2M1(b.Codes, src[1:17])
}

// NVFP4 holds 64 weights in 36 bytes, 4.5 bits per weight:
//
//	d  [4]byte   E4M3 for each group of 16, the sign not used
//	qs [32]byte  8 for each group: weight j in the low half of byte j, weight j+8 in the high half: E2M1
//
//	w = E4M3(d)·E2M1(q)
var NVFP4 = &Type{
	Format:    kernels.Format{Name: "NVFP4", BlockLen: 64, BlockBytes: 36, Unpack: unpackNVFP4},
	ID:        40,
	ByRequest: true,
	Grid: fit.New(quant.Affine{Name: "NVFP4", Block: 64, Group: 16, CodeMin: -e2m1Max, CodeMax: e2m1Max, Codebook: e2m1,
		Scales: quant.Scales{Floats: ue4m3, Max: 126}}),
	Pack:  packNVFP4,
	Parse: parseNVFP4,
}

func unpackNVFP4(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[64:], src[36:] {
		for g := range 4 {
			unpackE2M1(dst[16*g:16*g+16], src[4+8*g:][:8], ue4m3[src[g]])
		}
	}
}

func packNVFP4(dst []byte, b *quant.Block) {
	for g, sc := range b.Sc {
		dst[g] = quant.FloatByte(sc)
		packE2M1(dst[4+8*g:][:8], b.Codes[16*g:16*g+16])
	}
}

func parseNVFP4(b *quant.Block, src []byte) {
	b.D, b.DMin = 0, 0
	for g := range b.Sc {
		b.Sc[g], b.M[g] = quant.FloatCode(src[g]), 0
		parseE2M1(b.Codes[16*g:16*g+16], src[4+8*g:][:8])
	}
}

// e2m1Code returns the grid's code of four bits: a sign, then the place of the magnitude.
func e2m1Code(bits byte) int8 {
	if bits > e2m1Max {
		return -int8(bits & e2m1Max)
	}
	return int8(bits)
}

func e2m1Bits(code int8) int8 {
	if code < 0 {
		return 8 | -code
	}
	return code
}

func unpackE2M1(dst []float32, src []byte, scale float32) {
	high := dst[len(src):]
	for j, v := range src {
		dst[j], high[j] = scale*e2m1[e2m1Max+int(e2m1Code(v&15))], scale*e2m1[e2m1Max+int(e2m1Code(v>>4))]
	}
}

func packE2M1(dst []byte, codes []int8) {
	var q [32]int8
	for j, c := range codes {
		q[j] = e2m1Bits(c)
	}
	putNibbles(dst, q[:len(codes)])
}

func parseE2M1(codes []int8, src []byte) {
	nibbles(codes, src)
	for j, q := range codes {
		codes[j] = e2m1Code(byte(q))
	}
}
