package gptq

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// TestUnitRound: what round says that a unit's codes cost is what they cost, and never more than those it was given.
func TestUnitRound(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 5))
	for _, typ := range []*ggml.Type{ggml.IQ2_XXS, ggml.IQ2_S, ggml.IQ3_S, ggml.IQ1_S} {
		g := typ.Grid.(*quant.Lattice)
		n := g.Unit()
		m := make([]float32, n*n) // AAᵀ + 1
		a := make([]float64, n*n)
		for i := range a {
			a[i] = rng.NormFloat64()
		}
		for i := range n {
			for j := range n {
				var sum float64
				for k := range n {
					sum += a[i*n+k] * a[j*n+k]
				}
				if i == j {
					sum++
				}
				m[i*n+j] = float32(sum)
			}
		}
		r := unitRounder{metric: newUnitMetric(n, m)}
		values, codes := make([]kernels.Lane, n), make([]kernels.Lane, n)
		top := float64(slices.Max(g.Codebook.Levels))
		for i := range r.scale {
			r.scale[i] = float32(math.Exp(rng.NormFloat64()))
			for j := range values {
				values[j][i] = r.scale[i] * float32(0.4*top*rng.NormFloat64())
				r.grad[j][i] = r.scale[i] * float32(top*rng.NormFloat64())
			}
		}
		cost := func(i int) (sum float64) {
			for j := range n {
				d := float64(r.scale[i])*float64(r.level[j][i]) - float64(values[j][i])
				sum -= 2 * float64(r.grad[j][i]) * d
				for k := range n {
					sum += d * float64(m[j*n+k]) * (float64(r.scale[i])*float64(r.level[k][i]) - float64(values[k][i]))
				}
			}
			return sum
		}
		r.round(g, values, nil)
		for i := range r.scale {
			if want, got := cost(i), float64(r.least[i]); math.Abs(got-want) > 1e-3*math.Abs(want) || !r.better[i] {
				t.Errorf("%s, lane %d: cost %g, want %g", typ, i, got, want)
			}
		}
		// From the words of these codes on, under another gradient.
		for j := range codes {
			codes[j] = r.level[j]
			for i, q := range codes[j] {
				values[j][i] = r.scale[i] * q
				r.grad[j][i] = r.scale[i] * float32(top*float64(n)*rng.NormFloat64())
			}
		}
		r.round(g, values, codes)
		moved := 0
		for i, better := range r.better {
			same := true
			for j := range codes {
				same = same && r.level[j][i] == codes[j][i]
			}
			switch e := cost(i); {
			case better && !(e < 0), !better && !same:
				t.Errorf("%s, lane %d: cost %g, moved %v, same codes %v", typ, i, e, better, same)
			case better:
				moved++
			}
		}
		if moved == 0 {
			t.Errorf("%s: nothing moved", typ)
		}
	}
}

// BenchmarkWords is the time for a weight of each type of words, without the factor.
func BenchmarkWords(b *testing.B) {
	w, in := problem(1, 256, 1024, 2048)
	for _, typ := range ggml.Types {
		if _, ok := typ.Grid.(*quant.Lattice); !ok && typ != ggml.Q2_K {
			continue
		}
		for name, opt := range map[string]Options{"sweep": {NoRefine: true}, "refine": {}} {
			f, err := NewFactor(b.Context(), in.H, typ.Grid, opt)
			if err != nil {
				b.Fatal(err)
			}
			b.Run(typ.Name+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if _, err := f.Quantize(b.Context(), w, typ.Grid); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(w.Data)), "ns/weight")
			})
		}
	}
}
