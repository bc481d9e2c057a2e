package gptq

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestTakes: a job that takes the memory of what it is given comes to the same, the last one too.
func TestTakes(t *testing.T) {
	const rows, cols = 64, 256
	for _, c := range []struct {
		name                string
		tokens              int
		shortfall, together bool
		takes               bool // the weights
	}{
		{"corrected", 4 * cols, true, false, true},
		{"corrected, outputs together", 4 * cols, true, true, true},
		{"drift", 4 * cols, false, true, false},
		{"too few tokens", cols / 2, true, true, false},
	} {
		w, _ := problem(3, rows, cols, 1)
		original := w.Clone()
		stats := func() *quant.Stats {
			rng := rand.New(rand.NewPCG(4, 0))
			random := func(n int) *tensor.Matrix {
				m := tensor.New(c.tokens, n)
				for i := range m.Data {
					m.Data[i] = float32(rng.NormFloat64())
				}
				return m
			}
			in, x := quant.NewStats(cols), random(cols)
			in.Observe(x)
			if c.shortfall {
				in.ObserveShortfall(random(rows), x)
			} else {
				in.ObserveDrift(random(cols), x)
			}
			return in
		}
		quantize := func(takes bool) (quant.Result, *quant.Stats) {
			job, in := quant.Job{W: w, Grid: ggml.Q4_K.Grid, Takes: takes, Last: takes}, stats()
			if c.together {
				job.Outputs = []*tensor.Matrix{gradientHessian(5, rows, 4*rows)}
			}
			s := Method{}.Open(in)
			r, err := s.Quantize(t.Context(), job)
			if err != nil {
				t.Fatal(err)
			}
			if gone := s.(*solver).factors == nil; gone != takes {
				t.Errorf("%s: the factor has gone: %v", c.name, gone)
			}
			return r, in
		}
		want, in := quantize(false)
		if !slices.Equal(w.Data, original.Data) || c.shortfall != (in.Shortfall != nil) {
			t.Errorf("%s: a job that may not has taken something", c.name)
		}
		got, in := quantize(true)
		if !slices.Equal(got.Weight.Codes, want.Weight.Codes) || got.Damping != want.Damping || !slices.Equal(got.Target.Data, want.Target.Data) {
			t.Errorf("%s: a job that may take comes to something else", c.name)
		}
		if in.Shortfall != nil || (w.Data == nil) != c.takes {
			t.Errorf("%s: weights taken: %v; the shortfall: %v", c.name, w.Data == nil, in.Shortfall == nil)
		}
	}
}
