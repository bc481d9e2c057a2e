package gptq

import (
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestCoupledDivided: however each batch is divided among solvers, which tell each other the errors, the rows are those of QuantizeCoupled.
func TestCoupledDivided(t *testing.T) {
	const rows, cols = 2050, 512 // batches of 62 and 63 rows
	w, in := problem(17, rows, cols, 2*cols)
	outputs := gradientHessian(7, rows, 300)
	types := []*ggml.Type{ggml.Q4_K, ggml.IQ2_XS}
	if testing.Short() {
		types = types[:1]
	}
	for _, typ := range types {
		opt := Options{}
		f, err := NewFactor(t.Context(), in.H, typ.Grid, opt)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := f.QuantizeCoupled(t.Context(), w, typ.Grid, []*tensor.Matrix{outputs})
		if err != nil {
			t.Fatal(err)
		}
		want := typ.PackWeight(whole)
		solvers := make([]*Coupled, 3)
		for i := range solvers {
			s := Method{opt}.Open(&quant.Stats{H: in.H}).(CouplingSolver)
			if solvers[i], err = s.Couple(t.Context(), quant.Job{W: w, Grid: typ.Grid, Outputs: []*tensor.Matrix{outputs}}); err != nil {
				t.Fatal(err)
			}
		}
		size := len(want) / rows
		got := make([]byte, len(want))
		for i := solvers[0].Batches() - 1; i >= 0; i-- {
			lo, hi := solvers[0].Bounds(i)
			// Of one row, of less than lanes and of more, in turn; one solver has the others' rows told it.
			cuts := []int{lo, lo + 1 + i%20, lo + 1 + i%20 + 1 + i%33, hi}
			for k, c := range solvers {
				if cuts[k] == cuts[k+1] {
					continue
				}
				q, err := c.Quantize(t.Context(), i, cuts[k], cuts[k+1])
				if err != nil {
					t.Fatal(err)
				}
				data := typ.PackWeight(q)
				for p := cuts[k]; p < cuts[k+1]; p++ {
					copy(got[c.Row(p)*size:], data[(p-cuts[k])*size:][:size])
				}
			}
			for k, from := range solvers {
				for _, to := range solvers {
					for p := cuts[k]; p < cuts[k+1]; p++ {
						copy(to.Errors(p, p+1).Row(0), from.Errors(p, p+1).Row(0))
					}
				}
			}
		}
		if !slices.Equal(got, want) {
			differ := 0
			for r := range rows {
				if !slices.Equal(got[r*size:][:size], want[r*size:][:size]) {
					differ++
				}
			}
			t.Errorf("%s: %d of %d rows are others", typ.Name, differ, rows)
		}
	}
}
