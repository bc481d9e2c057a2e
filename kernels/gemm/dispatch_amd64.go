//go:build !purego

package gemm

import "github.com/llmq/llmq/kernels"

// products are those of each block type, by Format.Name.
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
	"MXFP4":  {dotMXFP4x1, dotMXFP4x2, dotMXFP4x4},
	"NVFP4":  {dotNVFP4x1, dotNVFP4x2, dotNVFP4x4},
	"TQ1_0":  {dotTQ1_0x1, dotTQ1_0x2, dotTQ1_0x4},
	"TQ2_0":  {dotTQ2_0x1, dotTQ2_0x2, dotTQ2_0x4},
	"Q1_0":   {dotQ1_0x1, dotQ1_0x2, dotQ1_0x4},
	"Q2_0":   {dotQ2_0x1, dotQ2_0x2, dotQ2_0x4},
}

// productsOf returns f's products with one, two and four tokens; ok is false if there are none.
func productsOf(f *kernels.Format) (p rowProducts, ok bool) {
	if kernels.CurrentTier() < kernels.AVX512 {
		return p, false
	}
	p, ok = products[f.Name]
	return p, ok
}

// productsBF16Of returns f's products with inputs in bfloat16; ok is false if there are none or p forbids them.
func productsBF16Of(f *kernels.Format, p kernels.Precision) (products rowProductsBF16, ok bool) {
	if !p.Rounds() || f.Name != "Q4_K" {
		return products, false
	}
	return rowProductsBF16{dotQ4_KBF16x1, dotQ4_KBF16x2, dotQ4_KBF16x4}, true
}
