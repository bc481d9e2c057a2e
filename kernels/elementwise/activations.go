package elementwise

import (
	"math"

	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// LayerNorm sets each row of dst to (x−mean)·w/√(var+eps) + b (Ba et al., arXiv:1607.06450); w has x.Cols elements, b as
// many or none. dst may be x.
func LayerNorm(dst, x *tensor.Matrix, w, b []float32, eps float32) {
	checkSame(dst, x)
	if len(w) != x.Cols || b != nil && len(b) != x.Cols {
		panic("kernels: LayerNorm weights do not have one element per column")
	}
	for t := range x.Rows {
		in, out := x.Row(t), dst.Row(t)
		var mean, variance float64
		for _, v := range in {
			mean += float64(v)
		}
		mean /= float64(len(in))
		for _, v := range in {
			d := float64(v) - mean
			variance += d * d
		}
		m, s := float32(mean), float32(1/math.Sqrt(variance/float64(len(in))+float64(eps)))
		for i, v := range in {
			out[i] = (v - m) * s * w[i]
		}
		if b != nil {
			vector.Axpy(out, 1, b)
		}
	}
}

// gate is a function that activations are made of.
type gate int

const (
	silu    gate = iota // x·σ(x)
	gelu                // the tanh form, x·σ(2u) with u = √(2/π)·(x+0.044715·x³), as 1+tanh(u) = 2·σ(2u)
	sigmoid             // σ(x)
)

// ones stand for up where there is none.
var ones = func() (v [1024]float32) {
	for i := range v {
		v[i] = 1
	}
	return v
}()

// activate sets dst = f(x)·up, row by row; up nil: 1.
func activate(f gate, dst, x, up *tensor.Matrix) {
	checkSame(dst, x)
	if up != nil {
		checkSame(dst, up)
	}
	for t := range dst.Rows {
		out, in := dst.Row(t), x.Row(t)
		if up != nil {
			gated(f, out, in, up.Row(t))
			continue
		}
		for lo := 0; lo < len(in); lo += len(ones) {
			hi := min(lo+len(ones), len(in))
			gated(f, out[lo:hi], in[lo:hi], ones[:hi-lo])
		}
	}
}

// SiLUMul sets dst = gate·σ(gate)·up, element by element. dst may be gate or up. The relative error is below 2⁻²⁰.
func SiLUMul(dst, gate, up *tensor.Matrix) { activate(silu, dst, gate, up) }

// SiLU sets dst = x·σ(x). dst may be x.
func SiLU(dst, x *tensor.Matrix) { activate(silu, dst, x, nil) }

// GELUMul sets dst = GELU(gate)·up in the tanh form (Hendrycks and Gimpel, arXiv:1606.08415). dst may be gate or up. The
// error is below 2⁻²⁰ of gate·up.
func GELUMul(dst, gate, up *tensor.Matrix) { activate(gelu, dst, gate, up) }

// GELU sets dst = GELU(x) in the tanh form. dst may be x.
func GELU(dst, x *tensor.Matrix) { activate(gelu, dst, x, nil) }

// SigmoidMul sets dst = dst·σ(gate).
func SigmoidMul(dst, gate *tensor.Matrix) { activate(sigmoid, dst, gate, dst) }

// ReLU2 sets dst = max(x,0)² (So et al., arXiv:2109.08668). dst may be x.
func ReLU2(dst, x *tensor.Matrix) {
	checkSame(dst, x)
	for t := range x.Rows {
		for i, v := range x.Row(t) {
			v = max(v, 0)
			dst.Row(t)[i] = v * v
		}
	}
}

// SwiGLUOMul sets dst = g·σ(1.702·g)·(u+1) with g = min(gate,7) and u = up within ±7: gpt-oss's activation. dst may be
// gate or up.
func SwiGLUOMul(dst, gate, up *tensor.Matrix) {
	const limit, alpha = 7, 1.702
	checkSame(dst, gate)
	checkSame(dst, up)
	var x, u [len(ones)]float32
	for t := range dst.Rows {
		for lo := 0; lo < dst.Cols; lo += len(x) {
			n := min(len(x), dst.Cols-lo)
			for i, v := range gate.Row(t)[lo : lo+n] {
				x[i] = alpha * min(v, limit)
			}
			for i, v := range up.Row(t)[lo : lo+n] {
				u[i] = (max(-limit, min(v, limit)) + 1) * (1 / alpha)
			}
			gated(silu, dst.Row(t)[lo:lo+n], x[:n], u[:n])
		}
	}
}
