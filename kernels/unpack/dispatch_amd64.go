//go:build !purego

package unpack

import "github.com/llmq/llmq/kernels"

// decoders are those of each block type, by Format.Name.
var decoders = map[string]struct{ avx2, avx512, bf16 Decoder }{
	"F16":    {unpackF16AVX2, unpackF16AVX512, unpackF16BF16},
	"BF16":   {unpackBF16AVX2, unpackBF16AVX512, nil},
	"Q8_0":   {unpackQ8_0AVX2, unpackQ8_0AVX512, unpackQ8_0BF16},
	"Q4_0":   {unpackQ4_0AVX2, unpackQ4_0AVX512, unpackQ4_0BF16},
	"Q4_1":   {unpackQ4_1AVX2, unpackQ4_1AVX512, unpackQ4_1BF16},
	"Q5_0":   {unpackQ5_0AVX2, unpackQ5_0AVX512, unpackQ5_0BF16},
	"Q5_1":   {unpackQ5_1AVX2, unpackQ5_1AVX512, unpackQ5_1BF16},
	"IQ4_NL": {unpackIQ4_NLAVX2, unpackIQ4_NLAVX512, unpackIQ4_NLBF16},
	"Q2_K":   {unpackQ2_KAVX2, unpackQ2_KAVX512, unpackQ2_KBF16},
	"Q3_K":   {unpackQ3_KAVX2, unpackQ3_KAVX512, unpackQ3_KBF16},
	"Q4_K":   {unpackQ4_KAVX2, unpackQ4_KAVX512, unpackQ4_KBF16},
	"Q5_K":   {unpackQ5_KAVX2, unpackQ5_KAVX512, unpackQ5_KBF16},
	"Q6_K":   {unpackQ6_KAVX2, unpackQ6_KAVX512, unpackQ6_KBF16},
	"IQ4_XS": {unpackIQ4_XSAVX2, unpackIQ4_XSAVX512, unpackIQ4_XSBF16},
	"MXFP4":  {unpackMXFP4AVX2, unpackMXFP4AVX512, unpackMXFP4BF16},
	"NVFP4":  {unpackNVFP4AVX2, unpackNVFP4AVX512, unpackNVFP4BF16},
	"TQ1_0":  {unpackTQ1_0AVX2, unpackTQ1_0AVX512, unpackTQ1_0BF16},
	"TQ2_0":  {unpackTQ2_0AVX2, unpackTQ2_0AVX512, unpackTQ2_0BF16},
	"Q1_0":   {unpackQ1_0AVX2, unpackQ1_0AVX512, unpackQ1_0BF16},
	"Q2_0":   {unpackQ2_0AVX2, unpackQ2_0AVX512, unpackQ2_0BF16},
}

// wordDecoder decodes formats of codebooks: table is Format.Words.
type wordDecoder func(dst, src *byte, n int, table *byte)

// wordDecoders are those of each block type of words, by Format.Name.
var wordDecoders = map[string]struct{ avx512, bf16 wordDecoder }{
	"IQ1_S":   {unpackIQ1_SAVX512, unpackIQ1_SBF16},
	"IQ1_M":   {unpackIQ1_MAVX512, unpackIQ1_MBF16},
	"IQ2_XXS": {unpackIQ2_XXSAVX512, unpackIQ2_XXSBF16},
	"IQ2_XS":  {unpackIQ2_XSAVX512, unpackIQ2_XSBF16},
	"IQ2_S":   {unpackIQ2_SAVX512, unpackIQ2_SBF16},
	"IQ3_XXS": {unpackIQ3_XXSAVX512, unpackIQ3_XXSBF16},
	"IQ3_S":   {unpackIQ3_SAVX512, unpackIQ3_SBF16},
}

// on is the decoder with f's table.
func (d wordDecoder) on(f *kernels.Format) Decoder {
	table := &f.Words[0]
	return func(dst, src *byte, n int) { d(dst, src, n, table) }
}

// DecoderF32 returns the tier's decoder, nil if there is none.
func DecoderF32(f *kernels.Format) Decoder {
	if f.Words != nil {
		if d := wordDecoders[f.Name].avx512; d != nil && kernels.CurrentTier() >= kernels.AVX512 {
			return d.on(f)
		}
		return nil
	}
	switch t := kernels.CurrentTier(); {
	case t >= kernels.AVX512:
		return decoders[f.Name].avx512
	case t >= kernels.AVX2:
		return decoders[f.Name].avx2
	}
	return nil
}

// DecoderBF16 returns the tier's decoder to bfloat16, nil if there is none.
func DecoderBF16(f *kernels.Format) Decoder {
	if kernels.CurrentTier() < kernels.AVX512BF16 {
		return nil
	}
	if d := wordDecoders[f.Name].bf16; d != nil && f.Words != nil {
		return d.on(f)
	}
	return decoders[f.Name].bf16
}

// levels are decoders to whole numbers, by Format.Name; AVX2 does for every tier.
var levels = map[string]func(level *byte, scale, minimum *float32, src *byte, n int){
	"Q8_0": levelsQ8_0, "Q4_0": levelsQ4_0, "Q4_1": levelsQ4_1, "Q5_0": levelsQ5_0, "Q5_1": levelsQ5_1,
	"IQ4_NL": levelsIQ4_NL, "Q2_K": levelsQ2_K, "Q3_K": levelsQ3_K, "Q4_K": levelsQ4_K, "Q5_K": levelsQ5_K,
	"Q6_K": levelsQ6_K, "IQ4_XS": levelsIQ4_XS, "MXFP4": levelsMXFP4, "NVFP4": levelsNVFP4,
	"TQ1_0": levelsTQ1_0, "TQ2_0": levelsTQ2_0, "Q1_0": levelsQ1_0, "Q2_0": levelsQ2_0,
}

// wordLevels are those of block types of words, in AVX-512.
var wordLevels = map[string]func(level *byte, scale, minimum *float32, src *byte, n int, table *byte){
	"IQ1_S": levelsIQ1_S, "IQ1_M": levelsIQ1_M, "IQ2_XXS": levelsIQ2_XXS, "IQ2_XS": levelsIQ2_XS, "IQ2_S": levelsIQ2_S,
	"IQ3_XXS": levelsIQ3_XXS, "IQ3_S": levelsIQ3_S,
}

// DecoderLevels returns the decoder of n > 0 blocks to their whole numbers, one a byte, with 128 added if the type has no
// minimum, and for each group its scale, and its minimum if the type has one; nil if there is none.
func DecoderLevels(f *kernels.Format) func(level *byte, scale, minimum *float32, src *byte, n int) {
	if kernels.CurrentTier() < kernels.AVX2 {
		return nil
	}
	if d := wordLevels[f.Name]; d != nil && f.Words != nil && kernels.CurrentTier() >= kernels.AVX512 {
		table := &f.Words[0]
		return func(level *byte, scale, minimum *float32, src *byte, n int) { d(level, scale, minimum, src, n, table) }
	}
	return levels[f.Name]
}
