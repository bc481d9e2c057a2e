// Package elementwise holds what a transformer does to every element: normalization, rotation, the gate, exponentials.
package elementwise

import (
	"math"

	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// RMSNorm sets each row of dst to x·w/√(mean(x²)+eps); w has x.Cols elements. dst may be x.
func RMSNorm(dst, x *tensor.Matrix, w []float32, eps float32) {
	checkSame(dst, x)
	if len(w) != x.Cols {
		panic("elementwise: RMSNorm weight does not have one element per column")
	}
	for t := range x.Rows {
		in := x.Row(t)
		// Blocks keep the sum's error that of a short dot product.
		const block = 1024
		var sum float64
		for i := 0; i < len(in); i += block {
			part := in[i:min(i+block, len(in))]
			sum += float64(vector.Dot(part, part))
		}
		scaleMul(dst.Row(t), in, w, float32(1/math.Sqrt(sum/float64(len(in))+float64(eps))))
	}
}

// RoPEStyle says which two dimensions of a head form a plane of rotation.
type RoPEStyle int

const (
	// RoPEPairs rotates dimensions (2i, 2i+1): the order of GGUF's llama architecture.
	RoPEPairs RoPEStyle = iota
	// RoPEHalves rotates dimensions (i, i+n/2) of the n that rotate: the order of Hugging Face and GPT-NeoX.
	RoPEHalves
)

// RoPE rotates every head of x in place (Su et al., arXiv:2104.09864). x is tokens×(heads·headDim); cos and sin are
// tokens×(n/2), row t for x's row t, where n ≤ headDim is the number of leading dimensions that rotate.
func RoPE(x *tensor.Matrix, headDim int, cos, sin *tensor.Matrix, style RoPEStyle) {
	half := cos.Cols
	if x.Cols%headDim != 0 || 2*half > headDim || sin.Cols != half || cos.Rows < x.Rows || sin.Rows < x.Rows {
		panic("elementwise: RoPE shapes do not agree")
	}
	if half == 0 {
		return
	}
	for t := range x.Rows {
		row, c, s := x.Row(t), cos.Row(t), sin.Row(t)
		ropeGo(row, headDim, c, s, rope(row, headDim, c, s, style), style)
	}
}

// Add sets dst += x, element by element.
func Add(dst, x *tensor.Matrix) {
	checkSame(dst, x)
	for t := range dst.Rows {
		vector.Axpy(dst.Row(t), 1, x.Row(t))
	}
}

// ScaleMul sets dst[i] = x[i]·s·w[i], multiplied in this order. dst may be x or w.
func ScaleMul(dst, x, w []float32, s float32) { scaleMul(dst[:len(x)], x, w[:len(x)], s) }

// ScaleTo sets dst[i] = x[i]·s. dst may be x.
func ScaleTo(dst, x []float32, s float32) {
	for lo := 0; lo < len(x); lo += len(ones) {
		hi := min(lo+len(ones), len(x))
		scaleMul(dst[lo:hi], x[lo:hi], ones[:hi-lo], s)
	}
}

// sumBlock is how many exponentials are summed in float32 before they are added in float64.
const sumBlock = 1024

// LogSumExp returns log Σ exp(row[i]); row[i] minus it is the log-softmax. It is −Inf for an empty row. The absolute
// error is below 10⁻⁶.
func LogSumExp(row []float32) float64 {
	m := Max(row)
	if math.IsInf(float64(m), 0) {
		return float64(m)
	}
	var sum float64
	var block [sumBlock]float32
	for i := 0; i < len(row); i += sumBlock {
		part := row[i:min(i+sumBlock, len(row))]
		sum += float64(ExpSum(block[:], part, m))
	}
	return float64(m) + math.Log(sum)
}

// SignedRoots sets dst[i] = √x[i], negative where bit i%64 of bits[i/64] is set. dst may be x.
func SignedRoots(dst, x []float32, bits []uint64) {
	if len(dst) != len(x) || len(bits) < (len(x)+63)/64 {
		panic("elementwise: SignedRoots lengths do not agree")
	}
	signedRoots(dst, x, bits)
}

func checkSame(a, b *tensor.Matrix) {
	if a.Rows != b.Rows || a.Cols != b.Cols {
		panic("elementwise: shapes do not agree")
	}
}
