package elementwise

import (
	"math"

	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// Derivatives of what this package computes: the gradient of some number at a result is taken to that at what it was made of.

// RMSNormBack sets dx to the gradient at RMSNorm's input x for dy, that at its result: with s = 1/√(mean(x²)+eps) and u = s·dy·w,
// dx = u − s²·x·mean(x·u). dx may be dy.
func RMSNormBack(dx, x, dy *tensor.Matrix, w []float32, eps float32) {
	checkSame(dx, x)
	checkSame(dx, dy)
	if len(w) != x.Cols {
		panic("elementwise: RMSNormBack weight does not have one element per column")
	}
	for t := range x.Rows {
		in, out := x.Row(t), dx.Row(t)
		n := float64(len(in))
		s := 1 / math.Sqrt(dot(in, in)/n+float64(eps))
		scaleMul(out, dy.Row(t), w, float32(s))
		vector.Axpy(out, float32(-s*s*dot(in, out)/n), in)
	}
}

// dot is x·y, summed in float32 for 1024 elements at a time, which keeps the sum's error that of a short dot product.
func dot(x, y []float32) float64 {
	var sum float64
	for i := 0; i < len(x); i += sumBlock {
		end := min(i+sumBlock, len(x))
		sum += float64(vector.Dot(x[i:end], y[i:end]))
	}
	return sum
}

// Sum returns Σ x[i].
func Sum(x []float32) float64 {
	var sum float64
	for i := 0; i < len(x); i += len(ones) {
		part := x[i:min(i+len(ones), len(x))]
		sum += float64(vector.Dot(part, ones[:len(part)]))
	}
	return sum
}

// SoftmaxBack replaces dp, the gradient at a softmax's result p, by that at its arguments: p·(dp − Σ p·dp).
func SoftmaxBack(dp, p []float32) {
	dp = dp[:len(p)]
	mean := dot(p, dp)
	scaleMul(dp, dp, p, 1)
	vector.Axpy(dp, float32(-mean), p)
}

// SiLUMulBack sets dGate and dUp to the gradients at gate and up for dz, that at SiLUMul's result: with s = σ(gate),
// dUp = dz·gate·s and dGate = dz·up·s·(1 + gate·(1−s)). dGate may be gate and dUp up.
func SiLUMulBack(dGate, dUp, dz, gate, up *tensor.Matrix) {
	for _, m := range []*tensor.Matrix{dUp, dz, gate, up} {
		checkSame(dGate, m)
	}
	for t := range dz.Rows {
		siluBack(dGate.Row(t), dUp.Row(t), dz.Row(t), gate.Row(t), up.Row(t))
	}
}
