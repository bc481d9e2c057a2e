package elementwise

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// lengths has whole vectors and what is left behind them, and more than a block of sums.
var lengths = []int{1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 1023, 1024, 2500}

// TestRMSNormBack compares with float64, in place and not.
func TestRMSNormBack(t *testing.T) {
	const eps = 1e-5
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(21, 22))
		for _, n := range lengths {
			x, dy, w := kerneltest.Random(rng, 3, n), kerneltest.Random(rng, 3, n), kerneltest.Random(rng, 1, n).Row(0)
			whole, dx := kerneltest.Guarded(3, n)
			RMSNormBack(dx, x, dy, w, eps)
			kerneltest.CheckGuards(t, whole, 3, n)
			again := dy.Clone()
			RMSNormBack(again, x, again, w, eps)
			for r := range 3 {
				var square, product, size float64
				for i, v := range x.Row(r) {
					square += float64(v) * float64(v)
					product += float64(v) * float64(dy.Row(r)[i]) * float64(w[i])
				}
				s := 1 / math.Sqrt(square/float64(n)+eps)
				want := make([]float64, n)
				for i, v := range x.Row(r) {
					a, b := s*float64(dy.Row(r)[i])*float64(w[i]), s*s*s*float64(v)*product/float64(n)
					want[i] = a - b
					size = max(size, math.Abs(a)+math.Abs(b))
				}
				for i, v := range want {
					if got := dx.Row(r)[i]; !(math.Abs(float64(got)-v) <= 0x1p-20*size) || got != again.Row(r)[i] {
						t.Fatalf("n=%d: %v and %v in place, want %v", n, got, again.Row(r)[i], v)
					}
				}
			}
		}
	})
}

// TestSiLUMulBack compares with float64, in place and not.
func TestSiLUMulBack(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(23, 24))
		for _, n := range lengths {
			gate, up, dz := kerneltest.Random(rng, 2, n), kerneltest.Random(rng, 2, n), kerneltest.Random(rng, 2, n)
			for i := range gate.Row(0) {
				gate.Row(0)[i] *= 30
			}
			wholeGate, dGate := kerneltest.Guarded(2, n)
			wholeUp, dUp := kerneltest.Guarded(2, n)
			SiLUMulBack(dGate, dUp, dz, gate, up)
			kerneltest.CheckGuards(t, wholeGate, 2, n)
			kerneltest.CheckGuards(t, wholeUp, 2, n)
			g, u := gate.Clone(), up.Clone()
			SiLUMulBack(g, u, dz, g, u)
			for r := range 2 {
				for i, v := range gate.Row(r) {
					x, y, d := float64(v), float64(up.Row(r)[i]), float64(dz.Row(r)[i])
					s := sigmoidOf(x)
					for _, c := range []struct {
						name         string
						got, inPlace float32
						want, size   float64
					}{
						{"gate", dGate.Row(r)[i], g.Row(r)[i], d * y * s * (1 + x*(1-s)), d * y * max(1, math.Abs(x)/8)},
						{"up", dUp.Row(r)[i], u.Row(r)[i], d * x * s, d * x},
					} {
						if !(math.Abs(float64(c.got)-c.want) <= 0x1p-20*math.Abs(c.size)) || c.got != c.inPlace {
							t.Fatalf("%s, n=%d, at %v: %v and %v in place, want %v", c.name, n, v, c.got, c.inPlace, c.want)
						}
					}
				}
			}
		}
		// Far out the slope is 0 or 1, and not NaN.
		far, one := tensor.FromSlice(1, 3, []float32{-1e20, 1e20, float32(math.NaN())}), tensor.FromSlice(1, 3, []float32{1, 1, 1})
		dGate, dUp := tensor.New(1, 3), tensor.New(1, 3)
		SiLUMulBack(dGate, dUp, one, far, one)
		small := func(v float32) bool { return v > -1e-15 && v < 1e-15 } // AVX2's exponentials end at 2^127.5
		if g, u := dGate.Row(0), dUp.Row(0); !small(g[0]) || g[1] != 1 || !small(u[0]) || u[1] != 1e20 || g[2] == g[2] || u[2] == u[2] {
			t.Errorf("at −1e20, 1e20 and NaN the gradients are %v and %v", g, u)
		}
	})
}

// TestSoftmaxBack compares with float64, and Sum with it.
func TestSoftmaxBack(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(25, 26))
		for _, n := range lengths {
			p, was := kerneltest.Random(rng, 1, n).Row(0), kerneltest.Random(rng, 1, n).Row(0)
			largest := Max(p)
			Scale(p, 1/ExpSum(p, p, largest))
			whole, view := kerneltest.Guarded(1, n)
			dp := view.Row(0)
			copy(dp, was)
			SoftmaxBack(dp, p)
			kerneltest.CheckGuards(t, whole, 1, n)
			var mean, sum float64
			for i, v := range p {
				mean += float64(v) * float64(was[i])
				sum += float64(was[i])
			}
			for i, v := range p {
				want := float64(v) * (float64(was[i]) - mean)
				if !(math.Abs(float64(dp[i])-want) <= 0x1p-20*float64(v)*(math.Abs(float64(was[i]))+1)) {
					t.Fatalf("n=%d: %v, want %v", n, dp[i], want)
				}
			}
			if got := Sum(was); !(math.Abs(got-sum) <= 0x1p-20*float64(n)) {
				t.Fatalf("n=%d: the sum is %v, want %v", n, got, sum)
			}
		}
	})
}

// TestSignedRoots compares with roots and signs one by one, with and without a word of bits to spare.
func TestSignedRoots(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(27, 28))
		for _, n := range append([]int{63, 64, 65, 128, 200, 256}, lengths...) {
			for spare := range 2 {
				x := make([]float32, n)
				for i := range x {
					x[i] = rng.Float32()
				}
				bits := make([]uint64, (n+63)/64+spare)
				for i := range bits {
					bits[i] = rng.Uint64()
				}
				whole, view := kerneltest.Guarded(1, n)
				got := view.Row(0)
				SignedRoots(got, x, bits)
				kerneltest.CheckGuards(t, whole, 1, n)
				for i, v := range x {
					want := float32(math.Sqrt(float64(v)))
					if bits[i/64]>>(i%64)&1 == 1 {
						want = -want
					}
					if got[i] != want {
						t.Fatalf("%d elements, %d words to spare: element %d is %v, want %v", n, spare, i, got[i], want)
					}
				}
			}
		}
	})
}
