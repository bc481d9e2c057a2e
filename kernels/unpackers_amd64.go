//go:build !purego

package kernels

// unpackers are the decoders of each block type, by Format.Name.
var unpackers = map[string]struct{ avx2, avx512, bf16 unpacker }{
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
}

func (f *Format) unpackerF32() unpacker {
	switch t := CurrentTier(); {
	case t >= AVX512:
		return unpackers[f.Name].avx512
	case t == AVX2:
		return unpackers[f.Name].avx2
	}
	return nil
}

func (f *Format) unpackerBF16() unpacker {
	if CurrentTier() < AVX512BF16 {
		return nil
	}
	return unpackers[f.Name].bf16
}

var products = map[string]rowProducts{
	"F16":    {dotF16x1, dotF16x2, dotF16x4},
	"BF16":   {dotBF16x1, dotBF16x2, dotBF16x4},
	"Q8_0":   {dotQ8_0x1, dotQ8_0x2, dotQ8_0x4},
	"Q4_0":   {dotQ4_0x1, dotQ4_0x2, dotQ4_0x4},
	"Q4_1":   {dotQ4_1x1, dotQ4_1x2, dotQ4_1x4},
	"Q5_0":   {dotQ5_0x1, dotQ5_0x2, dotQ5_0x4},
	"Q5_1":   {dotQ5_1x1, dotQ5_1x2, dotQ5_1x4},
	"IQ4_NL": {dotIQ4_NLx1, dotIQ4_NLx2, dotIQ4_NLx4},
	"Q2_K":   {dotQ2_Kx1, dotQ2_Kx2, dotQ2_Kx4},
	"Q3_K":   {dotQ3_Kx1, dotQ3_Kx2, dotQ3_Kx4},
	"Q4_K":   {dotQ4_Kx1, dotQ4_Kx2, dotQ4_Kx4},
	"Q5_K":   {dotQ5_Kx1, dotQ5_Kx2, dotQ5_Kx4},
	"Q6_K":   {dotQ6_Kx1, dotQ6_Kx2, dotQ6_Kx4},
	"IQ4_XS": {dotIQ4_XSx1, dotIQ4_XSx2, dotIQ4_XSx4},
}

// rowProducts returns the products with one, two and four tokens; ok is false if there are none.
func (f *Format) rowProducts() (p rowProducts, ok bool) {
	if CurrentTier() < AVX512 {
		return p, false
	}
	p, ok = products[f.Name]
	return p, ok
}

// rowProductsBF16 returns the products with inputs in bfloat16; ok is false if there are none or p forbids them.
func (f *Format) rowProductsBF16(p Precision) (products rowProductsBF16, ok bool) {
	if !p.Rounds() || f.Name != "Q4_K" {
		return products, false
	}
	return rowProductsBF16{dotQ4_KBF16x1, dotQ4_KBF16x2, dotQ4_KBF16x4}, true
}
