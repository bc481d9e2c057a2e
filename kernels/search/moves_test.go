package search

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
)

func TestMoves(t *testing.T) {
	odd := []float32{0, float32(math.Copysign(0, -1)), float32(math.Inf(1)), float32(math.Inf(-1)), float32(math.NaN()), 1e-30, 1e30, -1, 3e38, -3e38, 1e-40}
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 1))
		kinds := map[string]int{}
		for round := range 20000 {
			bounds := [][3]int{{0, 63, 63}, {-32, 31, 0}, {-128, 127, 0}, {0, 15, 15}}[round%4]
			lo, hi, most := bounds[0], bounds[1], bounds[2]
			var s Moves
			c := 1 + rng.Float64()
			for i := range kernels.Lanes {
				number := func(f float64) float32 {
					if round%3 == 0 && rng.IntN(12) == 0 {
						return odd[rng.IntN(len(odd))]
					}
					return float32(f)
				}
				s.A[i] = number(1 + rng.Float64())
				s.B[i] = number(2*rng.Float64() - 1)
				s.P[i], s.Q[i] = number(rng.NormFloat64()), number(rng.NormFloat64())
				s.Step[i], s.StepMinimum[i] = number(rng.NormFloat64()), number(rng.Float64())
				if most == 0 {
					s.StepMinimum[i] = 0
				}
				s.Scale[i], s.Minimum[i] = float32(lo+rng.IntN(hi-lo+1)), float32(rng.IntN(most+1))
			}
			if round%16 == 5 {
				c = [...]float64{0, -1, 1e-300, 1e300, math.NaN(), math.Inf(1)}[rng.IntN(6)]
			}
			if round == 3 { // a scale that is NaN
				c = 0.579
				for i := range kernels.Lanes {
					s.P[i], s.Q[i], s.A[i], s.B[i] = float32(math.Inf(1)), -3e38, -13.3, 1
					s.Step[i], s.Scale[i], s.Minimum[i] = float32(math.Inf(-1)), 4, 6
				}
			}
			wanted, mask := s, uint16(0)
			for i := range kernels.Lanes {
				if wanted.moveOne(i, c, float64(lo), float64(hi), float64(most)) {
					mask |= 1 << i
				}
			}
			before := s
			if moved := s.Move(c, lo, hi, most); moved != mask || s.Scale != wanted.Scale || s.Minimum != wanted.Minimum {
				t.Fatalf("%+v\nmoved %b to %v, %v, not %b to %v, %v", before, moved, s.Scale, s.Minimum, mask, wanted.Scale, wanted.Minimum)
			}
			for i := range kernels.Lanes {
				switch scale, minimum := s.Scale[i] != before.Scale[i], s.Minimum[i] != before.Minimum[i]; {
				case scale && minimum:
					kinds["both"]++
				case scale:
					kinds["the scale"]++
				case minimum:
					kinds["the minimum"]++
				default:
					kinds["neither"]++
				}
			}
		}
		for _, kind := range []string{"both", "the scale", "the minimum", "neither"} {
			if kinds[kind] < 1000 {
				t.Errorf("%d groups moved %s", kinds[kind], kind)
			}
		}
	})
}
