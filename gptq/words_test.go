package gptq

import (
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
)

// BenchmarkWords is the time for a weight of each type of words, without the factor.
func BenchmarkWords(b *testing.B) {
	w, in := problem(1, 256, 1024, 2048)
	for _, typ := range ggml.Types {
		if _, ok := typ.Grid.(*quant.Lattice); !ok && typ != ggml.Q2_K {
			continue
		}
		for name, opt := range map[string]Options{"sweep": {NoRefine: true}, "refine": {}} {
			f, err := NewFactor(b.Context(), in.H, typ.Grid, opt)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(typ.Name+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if _, err := f.Quantize(b.Context(), w, typ.Grid); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(w.Data)), "ns/weight")
			})
		}
	}
}
