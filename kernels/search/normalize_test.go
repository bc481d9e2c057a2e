package search

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

func TestNormalize(t *testing.T) {
	inf := float32(math.Inf(1))
	odd := []float32{0, float32(math.Copysign(0, -1)), -1, inf, -inf, float32(math.NaN()), 1e-40, 3e38}
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(8, 1))
		for n := range 70 {
			x := make([]kernels.Lane, n+1) // the last is not theirs
			var largest kernels.Lane
			for j := range x {
				for i := range x[j] {
					if x[j][i] = float32(rng.NormFloat64()); rng.IntN(5) == 0 {
						x[j][i] = odd[rng.IntN(len(odd))]
					}
					if j < n && x[j][i] > largest[i] {
						largest[i] = x[j][i]
					}
				}
			}
			if got := Largest(x[:n]); got != largest {
				t.Fatalf("of %d: largest %v, want %v", n, got, largest)
			}
			var most, factor kernels.Lane
			for i := range most {
				most[i], factor[i] = 2*rng.Float32(), rng.Float32()
			}
			most[3], factor[5], most[7], factor[7] = 0, 0, inf, 0
			want := append([]kernels.Lane(nil), x...)
			for j := range want[:n] {
				for i, v := range want[j] {
					if v > most[i] {
						v = most[i]
					}
					want[j][i] = 0
					if v *= factor[i]; v > 0 {
						want[j][i] = v
					}
				}
			}
			Normalize(x[:n], &most, &factor)
			for j := range x {
				for i, v := range x[j] {
					if math.Float32bits(v) != math.Float32bits(want[j][i]) {
						t.Fatalf("of %d: value %d of lane %d is %v, want %v", n, j, i, v, want[j][i])
					}
				}
			}
		}
	})
}
