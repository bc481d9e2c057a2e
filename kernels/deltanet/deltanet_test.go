package deltanet

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// scan64 is the rule in float64, token by token.
func scan64(s *Shape, q, k, v, g, beta *tensor.Matrix, seqLen int) [][]float64 {
	out := make([][]float64, q.Rows)
	for h := range s.Heads {
		kh := h % s.KeyHeads
		if s.Grouped {
			kh = h * s.KeyHeads / s.Heads
		}
		var memory [][]float64
		for t := range out {
			if t%seqLen == 0 {
				memory = make([][]float64, s.KeyDim)
				for i := range memory {
					memory[i] = make([]float64, s.ValueDim)
				}
			}
			if h == 0 {
				out[t] = make([]float64, v.Cols)
			}
			qt, kt := q.Row(t)[kh*s.KeyDim:], k.Row(t)[kh*s.KeyDim:]
			fade := math.Exp(float64(g.Row(t)[h]))
			for j := range s.ValueDim {
				held := 0.0
				for i := range memory {
					memory[i][j] *= fade
					held += memory[i][j] * float64(kt[i])
				}
				u := float64(beta.Row(t)[h]) * (float64(v.Row(t)[h*s.ValueDim+j]) - held)
				sum := 0.0
				for i := range memory {
					memory[i][j] += float64(kt[i]) * u
					sum += memory[i][j] * float64(qt[i])
				}
				out[t][h*s.ValueDim+j] = float64(s.Scale) * sum
			}
		}
	}
	return out
}

// inputs are random, with keys and queries of length 1 and gates as models have them, or as extreme as they can be.
func inputs(rng *rand.Rand, s *Shape, tokens int, extreme bool) (q, k, v, g, beta *tensor.Matrix) {
	q, k = kerneltest.Random(rng, tokens, s.KeyHeads*s.KeyDim), kerneltest.Random(rng, tokens, s.KeyHeads*s.KeyDim)
	v, g, beta = kerneltest.Random(rng, tokens, s.Heads*s.ValueDim), kerneltest.Random(rng, tokens, s.Heads), kerneltest.Random(rng, tokens, s.Heads)
	for t := range tokens {
		for _, row := range [][]float32{q.Row(t), k.Row(t)} {
			for h := range s.KeyHeads {
				head, sum := row[h*s.KeyDim:(h+1)*s.KeyDim], 0.0
				for _, x := range head {
					sum += float64(x) * float64(x)
				}
				for i := range head {
					head[i] /= float32(math.Sqrt(sum))
				}
			}
		}
		for h := range s.Heads {
			g.Row(t)[h] = -float32(math.Exp(float64(g.Row(t)[h]) - 3))
			beta.Row(t)[h] = float32(1 / (1 + math.Exp(-float64(beta.Row(t)[h]))))
			if extreme {
				g.Row(t)[h] = []float32{0, -200, float32(math.Inf(-1)), -1e-6, -30}[rng.IntN(5)]
				beta.Row(t)[h] = []float32{0, 1, 0.999}[rng.IntN(3)]
			}
		}
	}
	return q, k, v, g, beta
}

func TestScan(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, c := range []struct {
			Shape
			tokens, seqLen int
			extreme        bool
		}{
			{Shape{1, 1, 4, 4, false, 0.5}, 0, 3, false},
			{Shape{1, 1, 4, 4, false, 0.5}, 3, 1, false},
			{Shape{2, 1, 16, 16, false, 0.25}, 48, 48, false},
			{Shape{4, 2, 16, 16, true, 0.25}, 96, 48, false},
			{Shape{4, 2, 16, 16, false, 0.25}, 96, 48, false},
			{Shape{6, 3, 5, 7, true, 1}, 2 * 65, 65, false},
			{Shape{2, 2, 128, 128, false, 0.0884}, 200, 200, false},
			{Shape{3, 1, 64, 33, false, 0.125}, 2 * 129, 129, false},
			{Shape{2, 1, 32, 32, false, 1}, 2 * 150, 150, true},
		} {
			t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
				q, k, v, g, beta := inputs(rng, &c.Shape, c.tokens, c.extreme)
				want := scan64(&c.Shape, q, k, v, g, beta, c.seqLen)
				largest := 0.0
				for _, row := range want {
					for _, x := range row {
						largest = max(largest, math.Abs(x))
					}
				}
				whole, dst := kerneltest.Guarded(c.tokens, v.Cols)
				Scan(&c.Shape, dst, q, k, v, g, beta, c.seqLen)
				kerneltest.CheckGuards(t, whole, c.tokens, v.Cols)
				for i := range dst.Rows {
					for j, x := range dst.Row(i) {
						if d := math.Abs(float64(x) - want[i][j]); !(d <= 5e-6*largest) {
							t.Fatalf("(%d,%d) is %v, want %v", i, j, x, want[i][j])
						}
					}
				}
				// Alone, in place and with other processors, each sequence has the same bits.
				kerneltest.SetThreads(t, 3)
				for t0 := 0; t0 < c.tokens; t0 += c.seqLen {
					part := func(m *tensor.Matrix) *tensor.Matrix { return m.View(t0, t0+c.seqLen, 0, m.Cols) }
					Scan(&c.Shape, part(v), part(q), part(k), part(v), part(g), part(beta), c.seqLen)
				}
				for i := range dst.Rows {
					for j, x := range dst.Row(i) {
						if v.Row(i)[j] != x {
							t.Fatalf("(%d,%d) is %v alone, %v together", i, j, v.Row(i)[j], x)
						}
					}
				}
			})
		}
	})
}

func BenchmarkScan(b *testing.B) {
	s := &Shape{Heads: 32, KeyHeads: 16, KeyDim: 128, ValueDim: 128, Scale: 0.0884}
	const tokens = 512
	q, k, v, g, beta := inputs(rand.New(rand.NewPCG(1, 2)), s, tokens, false)
	dst := tensor.New(tokens, v.Cols)
	// As the rule is written: three products with the memory, which are six operations for each of its elements.
	kerneltest.Rate(b, 6*tokens*float64(s.Heads*s.KeyDim*s.ValueDim), func() { Scan(s, dst, q, k, v, g, beta, tokens) })
}
