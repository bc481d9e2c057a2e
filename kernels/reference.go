package kernels

import (
	"math"

	"github.com/llmq/llmq/tensor"
)

// This file holds the plain kernels: what tests compare the fast ones with, and what runs where there is no assembly.

func matMulGo(dst, x *tensor.Matrix, w *Weights) {
	Parallel(w.Rows, 8, func(lo, hi int) {
		row := make([]float32, w.Cols)
		for o := lo; o < hi; o++ {
			w.Format.Unpack(row, w.Row(o))
			for t := range x.Rows {
				dst.Data[t*dst.Stride+o] = dotGo(x.Row(t), row)
			}
		}
	})
}

func matMulF32Go(dst, x, w *tensor.Matrix) {
	Parallel(w.Rows, 8, func(lo, hi int) {
		for o := lo; o < hi; o++ {
			row := w.Row(o)
			for t := range x.Rows {
				dst.Data[t*dst.Stride+o] = dotGo(x.Row(t), row)
			}
		}
	})
}

func dotGo(a, b []float32) float32 {
	b = b[:len(a)]
	var s0, s1, s2, s3 float32
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + (s2 + s3)
}

func axpyGo(dst []float32, alpha float32, x []float32) {
	dst = dst[:len(x)]
	for i, v := range x {
		dst[i] += alpha * v
	}
}

// syrkGo sets the lower triangle of dst += XᵀX.
func syrkGo(dst, x *tensor.Matrix) {
	Parallel(dst.Rows, 1, func(lo, hi int) {
		for t := range x.Rows {
			row := x.Row(t)
			for i := lo; i < hi; i++ {
				axpyGo(dst.Row(i)[:i+1], row[i], row[:i+1])
			}
		}
	})
}

func gemmNNGo(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	Parallel(a.Rows, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			for k, v := range a.Row(i) {
				axpyGo(dst.Row(i), alpha*v, b.Row(k))
			}
		}
	})
}

func gemmTNGo(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	Parallel(a.Cols, 1, func(lo, hi int) {
		for k := range a.Rows {
			for i := lo; i < hi; i++ {
				axpyGo(dst.Row(i), alpha*a.Row(k)[i], b.Row(k))
			}
		}
	})
}

// gemmNTGo keeps to the part of dst on and below the diagonal if lower.
func gemmNTGo(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, lower bool) {
	Parallel(a.Rows, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			n := b.Rows
			if lower {
				n = min(n, i+1)
			}
			for j := range n {
				dst.Row(i)[j] += alpha * dotGo(a.Row(i), b.Row(j))
			}
		}
	})
}

func exp32(x float32) float32 { return float32(math.Exp(float64(x))) }

func expSumGo(dst, src []float32, shift float32) float32 {
	var sum float64
	for i, v := range src {
		dst[i] = exp32(v - shift)
		sum += float64(dst[i])
	}
	return float32(sum)
}

func siluMulGo(dst, gate, up []float32) {
	for i, v := range gate {
		dst[i] = v / (1 + exp32(-v)) * up[i]
	}
}

func maxOfGo(x []float32) float32 {
	m := float32(math.Inf(-1))
	for _, v := range x {
		m = max(m, v)
	}
	return m
}

// ropeGo rotates the planes from first on of every head of a token. Conversions keep products and sums apart, as the
// vector loops do.
func ropeGo(x []float32, headDim int, cos, sin []float32, first int, style RoPEStyle) {
	half := len(cos)
	for h := 0; h < len(x); h += headDim {
		for i := first; i < half; i++ {
			at, with := h+2*i, h+2*i+1
			if style == RoPEHalves {
				at, with = h+i, h+i+half
			}
			a, b := x[at], x[with]
			x[at], x[with] = float32(a*cos[i])-float32(b*sin[i]), float32(b*cos[i])+float32(a*sin[i])
		}
	}
}

func scaleMulGo(dst, x, w []float32, scale float32) {
	for i, v := range x {
		dst[i] = v * scale * w[i]
	}
}

func scaleGo(x []float32, s float32) {
	for i := range x {
		x[i] *= s
	}
}

// attentionGo keeps all scores of one query at a time.
func attentionGo(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim, window int, scale float32) {
	const tile = 32 // query rows that one call handles
	tiles := (q.Rows + tile - 1) / tile
	Parallel(heads*tiles, 1, func(lo, hi int) {
		scores := make([]float32, k.Rows)
		before := k.Rows - q.Rows // tokens without a query
		out := make([]float32, headDim)
		for i := lo; i < hi; i++ {
			h := i / tiles
			t0 := i % tiles * tile
			kv := h / (heads / kvHeads) * headDim
			for i := t0; i < min(t0+tile, q.Rows); i++ {
				t, first := before+i, 0
				if window > 0 {
					first = max(0, t-window+1)
				}
				qt := q.Row(i)[h*headDim : (h+1)*headDim]
				s := scores[:t+1-first]
				for j := range s {
					s[j] = scale * dotGo(qt, k.Row(first + j)[kv:kv+headDim])
				}
				sum := expSumGo(s, s, maxOfGo(s))
				scaleGo(s, 1/sum)
				clear(out)
				for j, p := range s {
					axpyGo(out, p, v.Row(first + j)[kv:kv+headDim])
				}
				copy(dst.Row(i)[h*headDim:], out)
			}
		}
	})
}
