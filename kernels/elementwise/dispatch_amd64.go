//go:build !purego

package elementwise

import (
	"math"

	"github.com/llmq/llmq/kernels"
)

// The vector loops take whole vectors; what is left at the end goes through one more, padded.

// tail is a vector's worth of padding.
type tail [16]float32

// load copies what is past n of x and fills up with pad.
func (t *tail) load(x []float32, n int, pad float32) *float32 {
	for i := copy(t[:], x[n:]); i < len(t); i++ {
		t[i] = pad
	}
	return &t[0]
}

// ExpSum sets dst[i] = exp(src[i]−shift), or 0 below 2⁻¹²⁶, and returns the sum.
func ExpSum(dst, src []float32, shift float32) float32 {
	l := kernels.CurrentTier().Lanes()
	if l == 0 {
		return expSumGo(dst, src, shift)
	}
	n := len(src) &^ (l - 1)
	var sum float32
	if n > 0 {
		sum = expSumWhole(l, &dst[0], &src[0], n, shift)
	}
	if n < len(src) {
		var t tail
		p := t.load(src, n, float32(math.Inf(-1)))
		sum += expSumWhole(l, p, p, l, shift)
		copy(dst[n:len(src)], t[:])
	}
	return sum
}

func expSumWhole(lanes int, dst, src *float32, n int, shift float32) float32 {
	if lanes == 16 {
		return expSumAVX512(dst, src, n, shift)
	}
	return expSumAVX2(dst, src, n, shift)
}

// Decays sets dst[i] = exp(s−sums[i]), the difference rounded to float32.
func Decays(dst []float32, sums []float64, s float64) {
	l := kernels.CurrentTier().Lanes()
	if l == 0 {
		decaysGo(dst, sums, s)
		return
	}
	dst = dst[:len(sums)]
	n := len(sums) &^ (l - 1)
	if n > 0 {
		decaysWhole(l, &dst[0], &sums[0], n, s)
	}
	if n < len(sums) {
		var t tail
		var rest [len(t)]float64
		copy(rest[:], sums[n:])
		decaysWhole(l, &t[0], &rest[0], l, s)
		copy(dst[n:], t[:])
	}
}

func decaysWhole(lanes int, dst *float32, sums *float64, n int, s float64) {
	if lanes == 16 {
		decaysAVX512(dst, sums, n, s)
	} else {
		decaysAVX2(dst, sums, n, s)
	}
}

// gated sets dst[i] = f(gate[i])·up[i].
func gated(f gate, dst, gate, up []float32) {
	l := kernels.CurrentTier().Lanes()
	if l == 0 {
		gatedGo(f, dst, gate, up)
		return
	}
	n := len(gate) &^ (l - 1)
	if n > 0 {
		gatedWhole(f, l, &dst[0], &gate[0], &up[0], n)
	}
	if n < len(gate) {
		var a, b tail
		p := a.load(gate, n, 0)
		gatedWhole(f, l, p, p, b.load(up, n, 0), l)
		copy(dst[n:len(gate)], a[:])
	}
}

func gatedWhole(f gate, lanes int, dst, gate, up *float32, n int) {
	switch wide := lanes == 16; {
	case f == silu && wide:
		siluMulAVX512(dst, gate, up, n)
	case f == silu:
		siluMulAVX2(dst, gate, up, n)
	case f == gelu && wide:
		geluMulAVX512(dst, gate, up, n)
	case f == gelu:
		geluMulAVX2(dst, gate, up, n)
	case wide:
		sigmoidMulAVX512(dst, gate, up, n)
	default:
		sigmoidMulAVX2(dst, gate, up, n)
	}
}

// siluBack is SiLUMulBack for a row.
func siluBack(dGate, dUp, dz, gate, up []float32) {
	l := kernels.CurrentTier().Lanes()
	if l == 0 {
		siluBackGo(dGate, dUp, dz, gate, up)
		return
	}
	n := len(gate) &^ (l - 1)
	if n > 0 {
		siluBackWhole(l, &dGate[0], &dUp[0], &dz[0], &gate[0], &up[0], n)
	}
	if n < len(gate) {
		var a, b, c tail
		g, u := a.load(gate, n, 0), b.load(up, n, 0)
		siluBackWhole(l, g, u, c.load(dz, n, 0), g, u, l)
		copy(dGate[n:len(gate)], a[:])
		copy(dUp[n:len(gate)], b[:])
	}
}

func siluBackWhole(lanes int, dGate, dUp, dz, gate, up *float32, n int) {
	if lanes == 16 {
		siluBackAVX512(dGate, dUp, dz, gate, up, n)
		return
	}
	siluBackAVX2(dGate, dUp, dz, gate, up, n)
}

// Max returns the largest element, −Inf for none. NaN may be overlooked.
func Max(x []float32) float32 {
	l := kernels.CurrentTier().Lanes()
	if l == 0 || len(x) < l {
		return maxGo(x)
	}
	n := len(x) &^ (l - 1)
	m := maximum(l, &x[0], n)
	if n < len(x) { // the last vector, some of whose elements have been seen
		m = max(m, maximum(l, &x[len(x)-l], l))
	}
	return m
}

func maximum(lanes int, x *float32, n int) float32 {
	if lanes == 16 {
		return maximumAVX512(x, n)
	}
	return maximumAVX2(x, n)
}

// rope rotates the first planes of every head of a token, whole vectors of them, and returns how many.
func rope(x []float32, headDim int, cos, sin []float32, style RoPEStyle) int {
	l, half := kernels.CurrentTier().Lanes(), len(cos)
	if l == 0 || len(x) == 0 {
		return 0
	}
	if style == RoPEPairs {
		n := half &^ (l/2 - 1)
		if l == 16 {
			ropePairsAVX512(&x[0], len(x)/headDim, headDim, &cos[0], &sin[0], n)
		} else {
			ropePairsAVX2(&x[0], len(x)/headDim, headDim, &cos[0], &sin[0], n)
		}
		return n
	}
	n := half &^ (l - 1)
	if l == 16 {
		ropeHalvesAVX512(&x[0], len(x)/headDim, headDim, half, &cos[0], &sin[0], n)
	} else {
		ropeHalvesAVX2(&x[0], len(x)/headDim, headDim, half, &cos[0], &sin[0], n)
	}
	return n
}

// scaleMul sets dst[i] = x[i]·scale·w[i].
func scaleMul(dst, x, w []float32, scale float32) {
	l := kernels.CurrentTier().Lanes()
	n := 0
	if l > 0 {
		n = len(x) &^ (l - 1)
	}
	if n > 0 {
		if l == 16 {
			scaleMulAVX512(&dst[0], &x[0], &w[0], n, scale)
		} else {
			scaleMulAVX2(&dst[0], &x[0], &w[0], n, scale)
		}
	}
	scaleMulGo(dst[n:], x[n:], w[n:], scale)
}

// Scale sets x[i] = x[i]·s.
func Scale(x []float32, s float32) {
	l := kernels.CurrentTier().Lanes()
	n := 0
	if l > 0 {
		n = len(x) &^ (l - 1)
	}
	if n > 0 {
		if l == 16 {
			scaleAVX512(&x[0], n, s)
		} else {
			scaleAVX2(&x[0], n, s)
		}
	}
	scaleGo(x[n:], s)
}

func signedRoots(dst, x []float32, bits []uint64) {
	l := kernels.CurrentTier().Lanes()
	n := min(len(x)/64, len(bits)-1) * 64 // the vector loops read whole words that have another behind them
	switch {
	case l == 0 || n <= 0:
		n = 0
	case l == 16:
		signedRootsAVX512(&dst[0], &x[0], &bits[0], n)
	default:
		signedRootsAVX2(&dst[0], &x[0], &bits[0], n)
	}
	signedRootsGo(dst[n:], x[n:], bits[n/64:])
}
