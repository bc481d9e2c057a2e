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

// activationBlock is how many exponentials are computed at a time.
const activationBlock = 1024

// sigmoids sets dst = 1/(1+exp(−src)); src may be dst. Both are at most activationBlock long.
func sigmoids(dst, src []float32) {
	for i, v := range src {
		dst[i] = -v
	}
	ExpSum(dst, dst, 0)
	for i, v := range dst {
		dst[i] = 1 / (1 + v)
	}
}

// activate sets dst = f(x)·σ(g(x))·up, block by block; up nil: 1.
func activate(dst, x, up *tensor.Matrix, g, f func(x float32) float32) {
	checkSame(dst, x)
	var block [activationBlock]float32
	for t := range x.Rows {
		in, out := x.Row(t), dst.Row(t)
		for lo := 0; lo < len(in); lo += activationBlock {
			hi := min(lo+activationBlock, len(in))
			s := block[:hi-lo]
			for i, v := range in[lo:hi] {
				s[i] = g(v)
			}
			sigmoids(s, s)
			if up == nil {
				for i, v := range in[lo:hi] {
					out[lo+i] = f(v) * s[i]
				}
				continue
			}
			for i, u := range up.Row(t)[lo:hi] {
				out[lo+i] = f(in[lo+i]) * s[i] * u
			}
		}
	}
}

// geluArgument is twice √(2/π)·(x+0.044715·x³), as 1+tanh(u) = 2·σ(2u).
func geluArgument(x float32) float32 { return 1.5957691216057308 * (x + 0.044715*x*x*x) }

func itself(x float32) float32 { return x }

// GELUMul sets dst = GELU(gate)·up in the tanh form (Hendrycks and Gimpel, arXiv:1606.08415). dst may be gate or up.
func GELUMul(dst, gate, up *tensor.Matrix) {
	checkSame(dst, up)
	activate(dst, gate, up, geluArgument, itself)
}

// GELU sets dst = GELU(x) in the tanh form. dst may be x.
func GELU(dst, x *tensor.Matrix) { activate(dst, x, nil, geluArgument, itself) }

// SiLU sets dst = x·σ(x). dst may be x.
func SiLU(dst, x *tensor.Matrix) { activate(dst, x, nil, itself, itself) }

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

// SigmoidMul sets dst = dst·σ(gate).
func SigmoidMul(dst, gate *tensor.Matrix) {
	checkSame(dst, gate)
	one := func(float32) float32 { return 1 }
	activate(dst, gate, dst, itself, one)
}

// SwiGLUOMul sets dst = g·σ(1.702·g)·(u+1) with g = min(gate,7) and u = up within ±7: gpt-oss's activation. dst may be
// gate or up.
func SwiGLUOMul(dst, gate, up *tensor.Matrix) {
	const limit, alpha = 7, 1.702
	checkSame(dst, gate)
	checkSame(dst, up)
	g := func(x float32) float32 { return alpha * min(x, limit) }
	f := func(x float32) float32 { return min(x, limit) }
	u := tensor.New(1, up.Cols)
	for t := range dst.Rows {
		for i, v := range up.Row(t) {
			u.Data[i] = max(-limit, min(v, limit)) + 1
		}
		activate(dst.View(t, t+1, 0, dst.Cols), gate.View(t, t+1, 0, gate.Cols), u, g, f)
	}
}
