package search

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

// Candidates measured together give what they give alone, bit for bit, on every tier.
func TestCandidates(t *testing.T) {
	same := func(a, b float32) bool {
		return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
	}
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, length := range []int{0, 2, 4, 16, 32, 256} {
			for n := range 17 {
				x, wt := make([]float32, length), make([]float32, length)
				for i := range x {
					x[i], wt[i] = float32(rng.NormFloat64()), rng.Float32()
				}
				var c Candidates
				for i := range n {
					c.Scale[i], c.Minimum[i] = float32(rng.NormFloat64())/8, float32(rng.NormFloat64())
				}
				if n > 3 {
					c.Scale[0], c.Scale[1], c.Scale[2], c.Minimum[3] = 0, 1e-30, float32(math.NaN()), 1e30
				}
				each := c
				lanes, laneWeights := make([][16]float32, length), make([][16]float32, length)
				for j := range length {
					for i := range n {
						lanes[j][i], laneWeights[j][i] = x[(j+i)%length], wt[(j+i)%length]
					}
				}
				each.MeasureEach(n, lanes, laneWeights, -3, 12)
				c.Measure(n, x, wt, -3, 12)
				for i := range n {
					if length > 0 {
						// The same group, begun at weight i.
						gx, gw := slices.Concat(x[i%length:], x[:i%length]), slices.Concat(wt[i%length:], wt[:i%length])
						got, want := each.Sums(i), MeasureLevels(gx, gw, c.Scale[i], c.Minimum[i], -3, 12)
						if !same(got.Err, want.Err) || !same(got.L, want.L) || !same(got.LL, want.LL) ||
							!same(got.LX, want.LX) {
							t.Fatalf("%d weights, lane %d of %d: %+v, want %+v", length, i, n, got, want)
						}
					}
					got, want := c.Sums(i), MeasureLevels(x, wt, c.Scale[i], c.Minimum[i], -3, 12)
					if !same(got.Err, want.Err) || !same(got.L, want.L) || !same(got.LL, want.LL) ||
						!same(got.LX, want.LX) {
						t.Fatalf("%d weights, candidate %d of %d: %+v, want %+v", length, i, n, got, want)
					}
				}
			}
		}
	})
	// One case by hand: 2·q − 1 on {−1, 0.8, 6, 100} with q in 0..3.
	s := MeasureLevels([]float32{-1, 0.8, 6, 100}, []float32{1, 1, 2, 0}, 2, 1, 0, 3)
	if want := (LevelSums{float32(0.2*0.2 + 2*1), 1 + 6, 1 + 18, 0.8 + 36}); math.Abs(float64(s.Err-want.Err)) > 1e-6 ||
		s.L != want.L || s.LL != want.LL || s.LX != want.LX {
		t.Errorf("%+v, want %+v", s, want)
	}
}

func BenchmarkCandidates(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	x, wt := make([]float32, 32), make([]float32, 32)
	for i := range x {
		x[i], wt[i] = float32(rng.NormFloat64()), rng.Float32()
	}
	var c Candidates
	for i := range 16 {
		c.Scale[i] = rng.Float32()
	}
	b.Run("together", func(b *testing.B) { kerneltest.Rate(b, 16*32, func() { c.Measure(16, x, wt, 0, 15) }) })
	b.Run("alone", func(b *testing.B) {
		kerneltest.Rate(b, 16*32, func() {
			for i := range 16 {
				MeasureLevels(x, wt, c.Scale[i], 0, 0, 15)
			}
		})
	})
}
