package pipeline

import (
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestGathered: inputs that wait are the same sums, however many come at a time, as those that do not.
func TestGathered(t *testing.T) {
	const in = 8 * gatherShare // eight wait
	rng := rand.New(rand.NewPCG(1, 8))
	random := func(rows int) *tensor.Matrix {
		m := tensor.New(rows, in)
		for i := range m.Data {
			m.Data[i] = float32(rng.IntN(9) - 4) // exact in bfloat16, and so are the sums
		}
		return m
	}
	for _, drifts := range []bool{false, true} {
		want, got := quant.NewStats(in), &gathered{Stats: quant.NewStats(in)}
		for _, rows := range []int{3, 5, 1, 7, 8, 2, 20, 9, 4, 4, 1} {
			x, drift := random(rows), random(rows)
			want.Observe(x)
			got.Observe(x)
			if drifts {
				want.ObserveDrift(drift, x)
				got.ObserveDrift(drift, x)
			}
			x.Zero() // scratch memory, which is used again
			drift.Zero()
		}
		if got.Tokens == want.Tokens {
			t.Fatal("no input has waited")
		}
		got.flush()
		got.flush()
		if got.Tokens != want.Tokens || !equalSums(got.Stats, want) {
			t.Errorf("drift %v: other sums over %d tokens than over %d", drifts, got.Tokens, want.Tokens)
		}
	}
}

func equalSums(a, b *quant.Stats) bool {
	pairs := [][2]*tensor.Matrix{{a.H, b.H}, {a.Drift, b.Drift}}
	sums := [][2][]float64{{a.Sum, b.Sum}, {a.DriftSum, b.DriftSum}}
	for k, p := range pairs {
		if (p[0] == nil) != (p[1] == nil) {
			return false
		}
		for i := range sums[k][0] {
			if sums[k][0][i] != sums[k][1][i] {
				return false
			}
		}
		for i := 0; p[0] != nil && i < p[0].Rows; i++ {
			for j, v := range p[0].Row(i) {
				if v != p[1].Row(i)[j] {
					return false
				}
			}
		}
	}
	return true
}
