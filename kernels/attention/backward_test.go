package attention

import (
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// backward64 is Back in float64 for one sequence, from P and dP.
func backward64(a *Shape, q, k, v, do *tensor.Matrix) (dq, dk, dv [][]float64) {
	zeros := func(m *tensor.Matrix) [][]float64 {
		z := make([][]float64, m.Rows)
		for i := range z {
			z[i] = make([]float64, m.Cols)
		}
		return z
	}
	dq, dk, dv = zeros(q), zeros(k), zeros(v)
	for t := range q.Rows {
		for h := range a.Heads {
			kv, first := h/(a.Heads/a.KVHeads), 0
			if a.Window > 0 {
				first = max(0, t-a.Window+1)
			}
			var sum, mean float64
			if a.Sinks != nil {
				sum = math.Exp(float64(a.Sinks[h]))
			}
			p, dp, slope := make([]float64, t+1), make([]float64, t+1), make([]float64, t+1)
			for s := first; s <= t; s++ {
				var score float64
				for i := range a.KeyDim {
					score += float64(q.Row(t)[h*a.KeyDim+i]) * float64(k.Row(s)[kv*a.KeyDim+i])
				}
				score *= float64(a.Scale)
				slope[s] = 1
				if c := float64(a.Softcap); c != 0 {
					th := math.Tanh(score / c)
					score, slope[s] = c*th, 1-th*th
				}
				p[s] = math.Exp(score)
				sum += p[s]
				for i := range a.ValueDim {
					dp[s] += float64(do.Row(t)[h*a.ValueDim+i]) * float64(v.Row(s)[kv*a.ValueDim+i])
				}
			}
			for s := first; s <= t; s++ {
				p[s] /= sum
				mean += p[s] * dp[s]
			}
			for s := first; s <= t; s++ {
				ds := p[s] * (dp[s] - mean) * slope[s] * float64(a.Scale)
				for i := range a.KeyDim {
					dq[t][h*a.KeyDim+i] += ds * float64(k.Row(s)[kv*a.KeyDim+i])
					dk[s][kv*a.KeyDim+i] += ds * float64(q.Row(t)[h*a.KeyDim+i])
				}
				for i := range a.ValueDim {
					dv[s][kv*a.ValueDim+i] += p[s] * float64(do.Row(t)[h*a.ValueDim+i])
				}
			}
		}
	}
	return dq, dk, dv
}

// TestBack compares the root mean square of the errors with that of the gradients: for tiles that are cut off by windows and by sequences' ends, for
// features that do not fill strips, and for values that have more in common than apart.
func TestBack(t *testing.T) {
	sinks := []float32{-1, 2.5, 3, 0.25}
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(15, 200))
		for _, c := range []struct {
			tokens, seqs int
			Shape
		}{
			{1, 3, Shape{Heads: 2, KVHeads: 1, KeyDim: 16}}, {13, 2, Shape{Heads: 4, KVHeads: 2, KeyDim: 10}},
			{33, 1, Shape{Heads: 3, KVHeads: 3, KeyDim: 64}}, {70, 2, Shape{Heads: 2, KVHeads: 1, KeyDim: 80, Window: 5}},
			{2*backTile + 9, 1, Shape{Heads: 2, KVHeads: 1, KeyDim: 64}}, {300, 1, Shape{Heads: 1, KVHeads: 1, KeyDim: 32, Window: 100}},
			{backTile + 30, 1, Shape{Heads: 2, KVHeads: 2, KeyDim: 12, Window: 70, Sinks: sinks[:2]}},
			{backTile, 1, Shape{Heads: 4, KVHeads: 2, KeyDim: 32, Sinks: sinks}},
			{45, 1, Shape{Heads: 2, KVHeads: 1, KeyDim: 20, Softcap: 2}}, {150, 1, Shape{Heads: 1, KVHeads: 1, KeyDim: 33, Window: 90, Softcap: 50}},
			{37, 2, Shape{Heads: 4, KVHeads: 2, KeyDim: 24, ValueDim: 10}}, {20, 1, Shape{Heads: 1, KVHeads: 1, KeyDim: 1100, ValueDim: 520}},
		} {
			a := &c.Shape
			if a.ValueDim == 0 {
				a.ValueDim = a.KeyDim
			}
			a.Scale = Scale(a.KeyDim)
			rows := c.tokens * c.seqs
			q, k := kerneltest.Random(rng, rows, a.Heads*a.KeyDim), kerneltest.Random(rng, rows, a.KVHeads*a.KeyDim)
			v, do := kerneltest.Random(rng, rows, a.KVHeads*a.ValueDim), kerneltest.Random(rng, rows, a.Heads*a.ValueDim)
			for i := range v.Data {
				v.Data[i] += float32(20 + i%v.Cols%30)
			}
			var want [3][][]float64
			for r := 0; r < rows; r += c.tokens {
				part := func(m *tensor.Matrix) *tensor.Matrix { return m.View(r, r+c.tokens, 0, m.Cols) }
				dq, dk, dv := backward64(a, part(q), part(k), part(v), part(do))
				want[0], want[1], want[2] = append(want[0], dq...), append(want[1], dk...), append(want[2], dv...)
			}
			for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
				bound := 1e-5
				if p.Rounds() {
					bound = 2 * kerneltest.EpsilonBF16
				}
				var whole, got [3]*tensor.Matrix
				for i, m := range []*tensor.Matrix{q, k, v} {
					whole[i], got[i] = kerneltest.Guarded(rows, m.Cols)
				}
				Back(a, c.tokens, got[0], got[1], got[2], q, k, v, do, p)
				for i, name := range []string{"queries", "keys", "values"} {
					kerneltest.CheckGuards(t, whole[i], rows, got[i].Cols)
					var lost, all float64
					for r, row := range want[i] {
						for j, w := range row {
							lost += (float64(got[i].Row(r)[j]) - w) * (float64(got[i].Row(r)[j]) - w)
							all += w * w
						}
					}
					if !(lost <= bound*bound*all+1e-12) {
						t.Errorf("%d tokens, %+v, %v: %.3g of the gradient at %s is lost, more than %.3g", c.tokens, c.Shape, p, math.Sqrt(lost/all), name, bound)
					}
				}
			}
		}
	})
}

// TestBackThreads: as many threads as there are give the same gradients.
func TestBackThreads(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	rng := rand.New(rand.NewPCG(15, 201))
	const n, seqs = 90, 3
	a := &Shape{Heads: 4, KVHeads: 2, KeyDim: 32, ValueDim: 32, Scale: Scale(32)}
	q, k, v, do := kerneltest.Random(rng, n*seqs, 128), kerneltest.Random(rng, n*seqs, 64), kerneltest.Random(rng, n*seqs, 64), kerneltest.Random(rng, n*seqs, 128)
	var want []float32
	for _, threads := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(threads)
		dq, dk, dv := tensor.New(n*seqs, 128), tensor.New(n*seqs, 64), tensor.New(n*seqs, 64)
		Back(a, n, dq, dk, dv, q, k, v, do, kernels.Auto)
		got := slices.Concat(dq.Data, dk.Data, dv.Data)
		if want == nil {
			want = got
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d threads give other gradients", threads)
		}
	}
}
