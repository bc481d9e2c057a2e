package attention

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// attend64 is attention in float64, straight from its definition.
func attend64(q, k, v *tensor.Matrix, heads, kvHeads, headDim, window int, scale float64) [][]float64 {
	out := make([][]float64, q.Rows)
	for t := range out {
		out[t] = make([]float64, q.Cols)
		for h := range heads {
			kv := h / (heads / kvHeads) * headDim
			var sum float64
			o := out[t][h*headDim : (h+1)*headDim]
			first := 0
			if window > 0 {
				first = max(0, t-window+1)
			}
			for s := first; s <= t; s++ {
				var dot float64
				for i := range headDim {
					dot += float64(q.Row(t)[h*headDim+i]) * float64(k.Row(s)[kv+i])
				}
				e := math.Exp(scale * dot)
				sum += e
				for i := range o {
					o[i] += e * float64(v.Row(s)[kv+i])
				}
			}
			for i := range o {
				o[i] /= sum
			}
		}
	}
	return out
}

func TestAttention(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, c := range []struct{ tokens, heads, kvHeads, headDim, window int }{
			{0, 2, 1, 8, 0}, {1, 1, 1, 4, 0}, {2, 2, 1, 16, 0}, {13, 4, 2, 10, 0}, {33, 3, 3, 64, 0}, {70, 2, 1, 80, 5},
			{257, 2, 2, 8, 0}, {300, 1, 1, 32, 100}, {300, 2, 1, 33, 257}, {530, 1, 1, 12, 1}, {520, 1, 1, 16, 600},
		} {
			q, k := kerneltest.Random(rng, c.tokens, c.heads*c.headDim), kerneltest.Random(rng, c.tokens, c.kvHeads*c.headDim)
			v := kerneltest.Random(rng, c.tokens, c.kvHeads*c.headDim)
			scale := Scale(c.headDim)
			want := attend64(q, k, v, c.heads, c.kvHeads, c.headDim, c.window, float64(scale))
			for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
				bound := 1e-6 * 6 * 5 // scores and values of normal inputs stay under 5
				if p == kernels.Auto && kernels.CurrentTier() == kernels.AVX512BF16 {
					bound = kerneltest.EpsilonBF16 * (1 + math.Sqrt(float64(c.headDim))) // roundings of normal inputs add up like their roots
				}
				whole, dst := kerneltest.Guarded(c.tokens, q.Cols)
				Causal(dst, q, k, v, c.heads, c.kvHeads, c.headDim, c.window, scale, p)
				kerneltest.CheckGuards(t, whole, c.tokens, q.Cols)
				inPlace := q.Clone()
				Causal(inPlace, inPlace, k, v, c.heads, c.kvHeads, c.headDim, c.window, scale, p)
				for _, last := range []int{1, c.tokens / 2} {
					if last > c.tokens {
						continue
					}
					from := c.tokens - last
					whole, tail := kerneltest.Guarded(last, q.Cols)
					Causal(tail, q.View(from, c.tokens, 0, q.Cols), k, v, c.heads, c.kvHeads, c.headDim, c.window, scale, p)
					kerneltest.CheckGuards(t, whole, last, q.Cols)
					for i := range last {
						for j, v := range tail.Row(i) {
							if d := math.Abs(float64(v) - want[from+i][j]); !(d <= bound) {
								t.Fatalf("%+v, the last %d: (%d,%d) is %v, want %v", c, last, i, j, v, want[from+i][j])
							}
						}
					}
				}
				for i := range want {
					for j, w := range want[i] {
						if d := math.Abs(float64(dst.Row(i)[j]) - w); !(d <= bound) || dst.Row(i)[j] != inPlace.Row(i)[j] {
							t.Fatalf("%+v: (%d,%d) is %v, in place %v, want %v ± %g", c, i, j, dst.Row(i)[j],
								inPlace.Row(i)[j], w, bound)
						}
					}
				}
			}
		}
	})
}

// Scores that would overflow an exponential do not.
func TestAttentionLargeScores(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		const tokens = 600
		q, k, v := tensor.New(tokens, 4), tensor.New(tokens, 4), tensor.New(tokens, 4)
		for i := range tokens {
			q.Row(i)[0], k.Row(i)[0], v.Row(i)[1] = 1, float32(i), float32(i)
		}
		dst := tensor.New(tokens, 4)
		for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
			relative := 1e-3
			if p == kernels.Auto && kernels.CurrentTier() == kernels.AVX512BF16 {
				relative = kerneltest.EpsilonBF16 // past 256, keys that are neighbours round to the same
			}
			Causal(dst, q, k, v, 1, 1, 4, 0, 10, p)
			for i := range tokens {
				if got, want := dst.Row(i)[1], float32(i); math.Abs(float64(got-want)) > relative*float64(want)+1e-4 {
					t.Fatalf("token %d attends to %v", i, got)
				}
			}
		}
	})
}

func TestAttentionThreads(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	q, k, v := kerneltest.Random(rng, 200, 128), kerneltest.Random(rng, 200, 64), kerneltest.Random(rng, 200, 64)
	var first *tensor.Matrix
	for _, threads := range []int{1, 2, 5} {
		kerneltest.SetThreads(t, threads)
		dst := tensor.New(200, 128)
		Causal(dst, q, k, v, 4, 2, 32, 0, 0.2, kernels.Auto)
		if first == nil {
			first = dst
		}
		for i, x := range dst.Data {
			if x != first.Data[i] {
				t.Fatalf("%d threads change element %d", threads, i)
			}
		}
	}
}

func BenchmarkAttention(b *testing.B) {
	for _, tokens := range []int{512, 2048} {
		b.Run(fmt.Sprint(tokens), func(b *testing.B) {
			const heads, kvHeads, headDim = 32, 4, 64
			rng := rand.New(rand.NewPCG(1, 1))
			q, k := kerneltest.Random(rng, tokens, heads*headDim), kerneltest.Random(rng, tokens, kvHeads*headDim)
			v, dst := kerneltest.Random(rng, tokens, kvHeads*headDim), tensor.New(tokens, heads*headDim)
			// Two products over half of the pairs.
			kerneltest.Rate(b, 2*float64(tokens)*float64(tokens)*heads*headDim, func() {
				Causal(dst, q, k, v, heads, kvHeads, headDim, 0, Scale(headDim), kernels.Auto)
			})
		})
	}
}
