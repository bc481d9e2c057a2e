package gptq

import (
	"context"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/tensor"
)

// gradientHessian returns Σ ggᵀ of correlated gradients.
func gradientHessian(seed uint64, n, tokens int) *tensor.Matrix {
	rng := rand.New(rand.NewPCG(seed, 1))
	mix, g := tensor.New(n, n), tensor.New(tokens, n)
	for i := range mix.Data {
		mix.Data[i] = float32(rng.NormFloat64() / math.Sqrt(float64(n)))
	}
	for i := range n {
		mix.Row(i)[i] += 0.3
	}
	z := tensor.New(tokens, n)
	for i := range z.Data {
		z.Data[i] = float32(rng.NormFloat64())
	}
	gemm.NN(g, 1, z, mix, kernels.F32)
	h := tensor.New(n, n)
	gemm.Syrk(h, g, kernels.F32)
	return h
}

func BenchmarkCoupled(b *testing.B) {
	for _, size := range [][2]int{{256, 256}, {768, 256}, {256, 768}, {1024, 1024}} {
		w, in := problem(1, size[0], size[1], 2*size[1])
		f, err := NewFactor(context.Background(), in.H, ggml.Q3_K.Grid, Options{})
		if err != nil {
			b.Fatal(err)
		}
		h := gradientHessian(2, size[0], 2*size[0])
		b.Run("alone", func(b *testing.B) {
			for b.Loop() {
				f.Quantize(context.Background(), w, ggml.Q3_K.Grid)
			}
		})
		b.Run("coupled", func(b *testing.B) {
			for b.Loop() {
				f.QuantizeCoupled(context.Background(), w, ggml.Q3_K.Grid, []*tensor.Matrix{h})
			}
		})
	}
}
