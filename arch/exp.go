package arch

import "math"

// exp32 is e^x as PyTorch computes it in float32, with which the converters that others use make GGUF files: SLEEF's expf
// (Shibata and Petrogalli, IEEE TPDS 2020, github.com/shibatch/sleef, src/libm/sleefsimdsp.c, xexpf) with fused multiply-adds.
// It is within an ulp of e^x.
func exp32(x float32) float32 {
	const ln2High, ln2Low = 0.693145751953125, 1.428606765330187045e-06
	fma := func(a, b, c float32) float32 { return float32(math.FMA(float64(a), float64(b), float64(c))) }
	n := float32(math.RoundToEven(float64(x * float32(math.Log2E))))
	s := fma(n, -ln2Low, fma(n, -ln2High, x))
	u := float32(0.000198527617612853646278381)
	for _, c := range []float32{0.00139304355252534151077271, 0.00833336077630519866943359, 0.0416664853692054748535156,
		0.166666671633720397949219, 0.5} {
		u = fma(u, s, c)
	}
	u = 1 + fma(s*s, u, s)
	switch {
	case x < -104:
		return 0
	case x > 104:
		return float32(math.Inf(1))
	}
	return float32(math.Ldexp(float64(u), int(n)))
}
