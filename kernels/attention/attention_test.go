package attention

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
)

// attend64 is attention in float64, straight from its definition.
func attend64(a *Shape, q, k, v *tensor.Matrix) [][]float64 {
	out := make([][]float64, q.Rows)
	for t := range out {
		out[t] = make([]float64, a.Heads*a.ValueDim)
		for h := range a.Heads {
			kv := h / (a.Heads / a.KVHeads)
			var sum float64
			if a.Sinks != nil {
				sum = math.Exp(float64(a.Sinks[h]))
			}
			o := out[t][h*a.ValueDim : (h+1)*a.ValueDim]
			first := 0
			if a.Window > 0 {
				first = max(0, t-a.Window+1)
			}
			for s := first; s <= t; s++ {
				var dot float64
				for i := range a.KeyDim {
					dot += float64(q.Row(t)[h*a.KeyDim+i]) * float64(k.Row(s)[kv*a.KeyDim+i])
				}
				dot *= float64(a.Scale)
				if c := float64(a.Softcap); c != 0 {
					dot = c * math.Tanh(dot/c)
				}
				e := math.Exp(dot)
				sum += e
				for i := range o {
					o[i] += e * float64(v.Row(s)[kv*a.ValueDim+i])
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
	sinks := []float32{-1, 2.5, 7, 0.25}
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, c := range []struct {
			tokens int
			Shape
		}{
			{0, Shape{Heads: 2, KVHeads: 1, KeyDim: 8}}, {1, Shape{Heads: 1, KVHeads: 1, KeyDim: 4}},
			{2, Shape{Heads: 2, KVHeads: 1, KeyDim: 16}}, {13, Shape{Heads: 4, KVHeads: 2, KeyDim: 10}},
			{33, Shape{Heads: 3, KVHeads: 3, KeyDim: 64}}, {70, Shape{Heads: 2, KVHeads: 1, KeyDim: 80, Window: 5}},
			{257, Shape{Heads: 2, KVHeads: 2, KeyDim: 8}}, {300, Shape{Heads: 1, KVHeads: 1, KeyDim: 32, Window: 100}},
			{300, Shape{Heads: 2, KVHeads: 1, KeyDim: 33, Window: 257}}, {530, Shape{Heads: 1, KVHeads: 1, KeyDim: 12, Window: 1}},
			{520, Shape{Heads: 1, KVHeads: 1, KeyDim: 16, Window: 600}},
			{1, Shape{Heads: 2, KVHeads: 1, KeyDim: 6, Sinks: sinks[:2]}}, {40, Shape{Heads: 4, KVHeads: 2, KeyDim: 16, Sinks: sinks}},
			{530, Shape{Heads: 2, KVHeads: 2, KeyDim: 12, Window: 70, Sinks: sinks[:2]}},
			{45, Shape{Heads: 2, KVHeads: 1, KeyDim: 20, Softcap: 2}}, {300, Shape{Heads: 1, KVHeads: 1, KeyDim: 33, Window: 90, Softcap: 50}},
			{37, Shape{Heads: 4, KVHeads: 2, KeyDim: 24, ValueDim: 10}}, {270, Shape{Heads: 3, KVHeads: 1, KeyDim: 10, ValueDim: 40}},
			{50, Shape{Heads: 2, KVHeads: 1, KeyDim: 1300, ValueDim: 700, Softcap: 3, Sinks: sinks[:2]}},
		} {
			a := &c.Shape
			if a.ValueDim == 0 {
				a.ValueDim = a.KeyDim
			}
			q, k := kerneltest.Random(rng, c.tokens, a.Heads*a.KeyDim), kerneltest.Random(rng, c.tokens, a.KVHeads*a.KeyDim)
			v := kerneltest.Random(rng, c.tokens, a.KVHeads*a.ValueDim)
			a.Scale = Scale(a.KeyDim)
			cols := a.Heads * a.ValueDim
			want := attend64(a, q, k, v)
			for _, p := range []kernels.Precision{kernels.Auto, kernels.F32} {
				bound := 1e-6 * 6 * 5 // scores and values of normal inputs stay under 5
				if p.Rounds() {
					bound = kerneltest.EpsilonBF16 * (1 + math.Sqrt(float64(a.KeyDim))) // roundings of normal inputs add up like their roots
				}
				whole, dst := kerneltest.Guarded(c.tokens, cols)
				Of(a, dst, q, k, v, p)
				kerneltest.CheckGuards(t, whole, c.tokens, cols)
				inPlace := dst
				if a.ValueDim == a.KeyDim {
					inPlace = q.Clone()
					Of(a, inPlace, inPlace, k, v, p)
				}
				for _, last := range []int{1, c.tokens / 2} {
					if last > c.tokens {
						continue
					}
					from := c.tokens - last
					whole, tail := kerneltest.Guarded(last, cols)
					Of(a, tail, q.View(from, c.tokens, 0, q.Cols), k, v, p)
					kerneltest.CheckGuards(t, whole, last, cols)
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

// TestSoftcap compares with float64 from tiny values, where the two forms meet, to where it saturates.
func TestSoftcap(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		for _, n := range []int{1, 7, keyTile} {
			row, want := make([]float32, n), make([]float64, n)
			for i := range row {
				row[i] = float32(math.Pow(10, float64(i%9)-6) * (1 + 0.3*float64(i%11)))
				if i%2 == 1 {
					row[i] = -row[i]
				}
				want[i] = 30 * math.Tanh(float64(row[i]))
			}
			softcap(row, 30)
			for i, v := range row {
				if d := math.Abs(float64(v) - want[i]); !(d <= 1e-6*math.Abs(want[i])) {
					t.Errorf("element %d of %d is %v, want %v", i, n, v, want[i])
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
			if p.Rounds() {
				relative = kerneltest.EpsilonBF16 // past 256, keys that are neighbours round to the same
			}
			Of(&Shape{Heads: 1, KVHeads: 1, KeyDim: 4, ValueDim: 4, Scale: 10}, dst, q, k, v, p)
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
		Of(&Shape{Heads: 4, KVHeads: 2, KeyDim: 32, ValueDim: 32, Scale: 0.2}, dst, q, k, v, kernels.Auto)
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
	const heads, kvHeads, headDim = 32, 4, 64
	plain := Shape{Heads: heads, KVHeads: kvHeads, KeyDim: headDim, ValueDim: headDim, Scale: Scale(headDim)}
	capped, sunk, latent := plain, plain, Shape{Heads: 16, KVHeads: 1, KeyDim: 576, ValueDim: 512, Scale: Scale(576)}
	capped.Softcap, sunk.Sinks = 50, make([]float32, heads)
	for _, c := range []struct {
		name   string
		tokens int
		shape  *Shape
	}{{"512", 512, &plain}, {"2048", 2048, &plain}, {"512capped", 512, &capped}, {"512sinks", 512, &sunk}, {"512latent", 512, &latent}} {
		b.Run(c.name, func(b *testing.B) {
			a, n := c.shape, c.tokens
			rng := rand.New(rand.NewPCG(1, 1))
			q, k := kerneltest.Random(rng, n, a.Heads*a.KeyDim), kerneltest.Random(rng, n, a.KVHeads*a.KeyDim)
			v, dst := kerneltest.Random(rng, n, a.KVHeads*a.ValueDim), tensor.New(n, a.Heads*a.ValueDim)
			// Two products over half of the pairs.
			kerneltest.Rate(b, float64(n)*float64(n)*float64(a.Heads*(a.KeyDim+a.ValueDim)), func() { Of(a, dst, q, k, v, kernels.Auto) })
		})
	}
}
