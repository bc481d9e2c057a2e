package codebook

import (
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
)

// TestNearest compares every tier with plain Go, bit for bit, on codebooks of every shape.
func TestNearest(t *testing.T) {
	defer kernels.SetTier(kernels.CurrentTier())
	rng := rand.New(rand.NewPCG(15, 2))
	for _, shape := range []struct{ width, levels, words int }{{8, 3, 1}, {8, 3, 256}, {8, 3, 2048}, {4, 8, 3}, {4, 8, 256}, {4, 8, 512}} {
		halves := 1
		for range shape.width / 2 {
			halves *= shape.levels
		}
		var lower, upper []uint8
		for n, left := 0, shape.words; n < halves*halves; n++ { // left of the numbers that remain, at random
			if rng.IntN(halves*halves-n) < left {
				lower, upper = append(lower, uint8(n%halves)), append(upper, uint8(n/halves))
				left--
			}
		}
		words := NewWords(shape.width, shape.levels, lower, upper)
		levels := make([]float32, shape.levels)
		for i := range levels {
			levels[i] = float32(2*i + 1)
		}
		for range 20 {
			target, weight := make([]kernels.Lane, shape.width), make([]kernels.Lane, shape.width)
			var turn [kernels.Lanes]int32
			for i := range turn {
				turn[i] = -int32(rng.IntN(2))
				for j := range target {
					target[j][i], weight[j][i] = float32(rng.IntN(17)), float32(rng.IntN(3)) // with many ties
				}
			}
			for _, turn := range []*[kernels.Lanes]int32{nil, &turn} {
				var want, got [kernels.Lanes]int32
				var wantCost, cost kernels.Lane
				var s Search
				kernels.SetTier(kernels.PureGo)
				s.Nearest(&want, &wantCost, words, levels, target, weight, turn)
				for _, tier := range kernels.Tiers() {
					kernels.SetTier(tier)
					s.Nearest(&got, &cost, words, levels, target, weight, turn)
					if got != want || cost != wantCost {
						t.Fatalf("%v, %+v, turned %v: words %v cost %v, want %v cost %v", tier, shape, turn, got, cost, want, wantCost)
					}
				}
			}
		}
	}
}

// TestNearestLeast compares with the definition.
func TestNearestLeast(t *testing.T) {
	// Columns 0 and 1 are the lower half; words 0: (1,1,1,1), 1: (2,1,1,1), 2: (1,2,2,2).
	w := NewWords(4, 2, []uint8{0, 1, 2}, []uint8{0, 0, 3})
	target, weight := make([]kernels.Lane, 4), make([]kernels.Lane, 4)
	var turn [kernels.Lanes]int32
	for j, v := range []float32{1.6, 1.2, 1, 0.5} {
		for i := range kernels.Lanes {
			target[j][i], weight[j][i] = v, float32(1+j)
		}
	}
	turn[3] = -1
	var word [kernels.Lanes]int32
	var cost kernels.Lane
	new(Search).Nearest(&word, &cost, w, []float32{1, 2}, target, weight, &turn)
	// Word 1: 0.4² + 2·0.2² + 3·0² + 4·0.5² = 1.24; word 0: 0.6² instead of 0.4². In word 0 turning column 0 costs 6.4, in word 1
	// 8 of column 3 are the least.
	for i := range word {
		wantWord, want := int32(1), float32(1.24)
		if i == 3 {
			wantWord, want = 0, 1.44+6.4
		}
		if d := cost[i] - want; word[i] != wantWord || d > 1e-5 || d < -1e-5 {
			t.Errorf("row %d: word %d at %g, want %d at %g", i, word[i], cost[i], wantWord, want)
		}
	}
}

func BenchmarkNearest(b *testing.B) {
	var lower, upper []uint8
	for n := 0; n < 6561; n += 6 {
		lower, upper = append(lower, uint8(n%81)), append(upper, uint8(n/81))
	}
	w := NewWords(8, 3, lower, upper)
	target, weight := make([]kernels.Lane, 8), make([]kernels.Lane, 8)
	for i := range kernels.Lanes {
		for j := range 8 {
			target[j][i], weight[j][i] = float32(i+j), 1
		}
	}
	var word, turn [kernels.Lanes]int32
	var cost kernels.Lane
	var s Search
	for b.Loop() {
		s.Nearest(&word, &cost, w, []float32{8, 25, 43}, target, weight, nil)
	}
	_ = turn
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/128, "ns/weight")
}
