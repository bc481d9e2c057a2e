// Package blocktest makes weights of every block type, for tests of what reads them.
package blocktest

import (
	"math/rand/v2"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
)

// Types are all block types; blocks of random bytes have random scales, some of which are subnormal, infinite or NaN.
var Types = []*ggml.Type{ggml.F32, ggml.F16, ggml.BF16, ggml.Q8_0, ggml.Q4_0, ggml.Q4_1, ggml.Q5_0, ggml.Q5_1,
	ggml.IQ4_NL, ggml.Q2_K, ggml.Q3_K, ggml.Q4_K, ggml.Q5_K, ggml.Q6_K, ggml.IQ4_XS, ggml.IQ1_S, ggml.IQ1_M, ggml.IQ2_XXS,
	ggml.IQ2_XS, ggml.IQ2_S, ggml.IQ3_XXS, ggml.IQ3_S, ggml.MXFP4, ggml.NVFP4, ggml.TQ1_0, ggml.TQ2_0, ggml.Q1_0,
	ggml.Q2_0}

// Weights returns random weights of a type, rows×cols: random bytes, but scales of moderate size.
func Weights(rng *rand.Rand, typ *ggml.Type, rows, cols int) *kernels.Weights {
	w := &kernels.Weights{Rows: rows, Cols: cols, Format: &typ.Format, Data: make([]byte, rows*typ.RowBytes(cols))}
	row := make([]float32, cols)
	for i := range rows {
		for j := range row {
			row[j] = float32(rng.NormFloat64())
		}
		if typ.Grid == nil {
			typ.Encode(w.Row(i), row, nil)
			continue
		}
		for j := range w.Row(i) {
			w.Row(i)[j] = byte(rng.Uint32())
		}
		for b := 0; b < len(w.Row(i)); b += typ.BlockBytes {
			block := w.Row(i)[b : b+typ.BlockBytes]
			for _, at := range scalesAt[typ.Name] {
				block[at+1] = block[at+1]&0x83 | 0x28 // exponent 2⁻⁵ or 2⁻⁴
			}
			if typ == ggml.MXFP4 {
				block[0] = 120 + block[0]%8
			}
			if typ == ggml.NVFP4 {
				for g := range 4 {
					block[g] = 40 + block[g]%16
				}
			}
			if typ == ggml.IQ1_M { // in the top four bits of four numbers
				block[53] &= 0x3f
				block[55] = block[55]&0x8f | 0x20
			}
		}
	}
	return w
}

// scalesAt are the offsets of the float16 values in a block.
var scalesAt = map[string][]int{"Q8_0": {0}, "Q4_0": {0}, "Q4_1": {0, 2}, "Q5_0": {0}, "Q5_1": {0, 2}, "IQ4_NL": {0},
	"Q2_K": {80, 82}, "Q3_K": {108}, "Q4_K": {0, 2}, "Q5_K": {0, 2}, "Q6_K": {208}, "IQ4_XS": {0}, "IQ1_S": {0}, "IQ2_XXS": {0}, "IQ2_XS": {0}, "IQ2_S": {0}, "IQ3_XXS": {0}, "IQ3_S": {0}, "TQ1_0": {52},
	"TQ2_0": {64}, "Q1_0": {0}, "Q2_0": {0}}
