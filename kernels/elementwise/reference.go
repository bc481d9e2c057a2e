package elementwise

import "math"

// This file holds the plain loops: what tests compare the fast ones with, and what runs where there is no assembly.

func exp32(x float32) float32 { return float32(math.Exp(float64(x))) }

func expSumGo(dst, src []float32, shift float32) float32 {
	var sum float64
	for i, v := range src {
		dst[i] = exp32(v - shift)
		sum += float64(dst[i])
	}
	return float32(sum)
}

func decaysGo(dst []float32, sums []float64, s float64) {
	for i, v := range sums {
		dst[i] = exp32(float32(s - v))
	}
}

func gatedGo(f gate, dst, gate, up []float32) {
	for i, v := range gate {
		switch f {
		case silu:
			v /= 1 + exp32(-v)
		case gelu:
			v /= 1 + exp32(float32(-2*math.Sqrt(2/math.Pi))*(v+0.044715*v*v*v))
		case sigmoid:
			v = 1 / (1 + exp32(-v))
		}
		dst[i] = v * up[i]
	}
}

func siluBackGo(dGate, dUp, dz, gate, up []float32) {
	for i, g := range gate {
		s := 1 / (1 + exp32(-g))
		dGate[i], dUp[i] = dz[i]*up[i]*(s*(1+g*(1-s))), dz[i]*(g*s)
	}
}

func maxGo(x []float32) float32 {
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

func signedRootsGo(dst, x []float32, bits []uint64) {
	for i, v := range x {
		root := math.Float32bits(float32(math.Sqrt(float64(v))))
		dst[i] = math.Float32frombits(root ^ uint32(bits[i/64]>>(i%64))<<31)
	}
}
