package q8

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
)

// TestFMA compares with exact sums, of numbers that often lie between two float32 values, and just beside the middle.
func TestFMA(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	few := func(exponent int) float32 { // of few digits
		return float32(math.Ldexp(float64(rng.IntN(1<<13)-1<<12), exponent))
	}
	for range 20000 {
		x, y, z := few(-6), few(-6), float32(math.Ldexp(rng.Float64()-0.5, rng.IntN(90)-30))
		switch rng.IntN(4) {
		case 0: // a tie, less or more what float64 has no room for
			z = float32(math.Ldexp(1+float64(rng.IntN(1<<23))*0x1p-23, 60))
			x = 1 + rng.Float32()
			y = float32(math.Copysign(0x1p36, rng.Float64()-0.5)) * (1 / x)
		case 1:
			x, y, z = x*0x1p-70, y*0x1p-70, few(-149)
		}
		exact := new(big.Float).SetPrec(400).Mul(big.NewFloat(float64(x)), big.NewFloat(float64(y)))
		want, _ := exact.SetPrec(400).Add(exact, big.NewFloat(float64(z))).Float32()
		if got := fma(x, y, z); got != want {
			t.Fatalf("%v·%v + %v is %v, want %v", x, y, z, got, want)
		}
	}
	if got := fma(float32(math.Inf(1)), 0, 1); got == got {
		t.Errorf("∞·0 + 1 is %v", got)
	}
	if got := fma(math.MaxFloat32, 2, -1); !math.IsInf(float64(got), 1) {
		t.Errorf("what is too large is %v", got)
	}
}
