package gptq

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// shortOf gives in a Shortfall of so many outputs, or a Drift.
func shortOf(in *quant.Stats, outputs int, drift bool) *quant.Stats {
	with := *in
	rows := outputs
	if drift {
		rows = in.H.Rows
	}
	d, rng := tensor.New(rows, in.H.Rows), rand.New(rand.NewPCG(9, 1))
	for i := range d.Data {
		d.Data[i] = float32(rng.NormFloat64()) * float32(in.Tokens) * 0.01
	}
	if drift {
		with.Drift, with.DriftSum = d, make([]float64, rows)
	} else {
		with.Shortfall, with.ShortfallSum = d, make([]float64, rows)
	}
	return &with
}

// TestCorrectRows: rows that are corrected by themselves, however many and in any order, are bit for bit those that are corrected with all
// others, and nothing else changes.
func TestCorrectRows(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	const rows, cols = bandRows + 67, 160 // of three diagonal blocks, the last of which is not whole
	w, seen := problem(19, rows, cols, 3*cols)
	for _, drift := range []bool{false, true} {
		in := shortOf(seen, rows, drift)
		f, err := NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{})
		if err != nil {
			t.Fatal(err)
		}
		runtime.GOMAXPROCS(2)
		all := f.Correct(w, in)
		order := rand.New(rand.NewPCG(5, 5)).Perm(rows)
		for _, threads := range []int{1, 3} {
			runtime.GOMAXPROCS(threads)
			for _, n := range []int{0, 1, 2, 3, 5, 7, 15, 16, 17, 31, 33, 63, 100, rows} {
				got := w.Clone()
				f.correctRows(got, in, order[:n])
				for i, r := range order {
					want := all.Row(r)
					if i >= n {
						want = w.Row(r)
					}
					if !slices.Equal(got.Row(r), want) {
						t.Fatalf("drift %v, %d threads: row %d of %d corrected is another", drift, threads, i, n)
					}
				}
			}
		}
		if slices.Equal(all.Row(0), w.Row(0)) {
			t.Error("nothing is corrected")
		}
	}
}

// TestCoupledDivided: however each batch is divided among solvers, which tell each other targets and what these became, the rows are those of
// one that has all of them. Each corrects the rows that it quantizes, and no others; one is lost amid the batches.
func TestCoupledDivided(t *testing.T) {
	const rows, cols = 2050, 512 // batches of 62 and 63 rows
	w, seen := problem(17, rows, cols, 2*cols)
	in := shortOf(seen, rows, false)
	outputs := gradientHessian(7, rows, 300)
	types := []*ggml.Type{ggml.Q4_K, ggml.IQ2_XS}
	if testing.Short() {
		types = types[:1]
	}
	for _, typ := range types {
		job := func() quant.Job {
			return quant.Job{W: w.Clone(), Grid: typ.Grid, Outputs: []*tensor.Matrix{outputs}}
		}
		whole, err := Method{}.Open(in).Quantize(t.Context(), job())
		if err != nil {
			t.Fatal(err)
		}
		want := typ.PackWeight(whole.Weight)
		solvers := make([]*Coupled, 3)
		for i := range solvers {
			if solvers[i], err = (Method{}).Open(in).(CouplingSolver).Couple(t.Context(), job()); err != nil {
				t.Fatal(err)
			}
		}
		const lost, amid = 1, 14 // the solver, and the batch that it does not see any more
		// Of one row, of less than lanes and of more, in turn; then without the second solver.
		cutsOf := func(i int) []int {
			lo, hi := solvers[0].Bounds(i)
			cuts := []int{lo, lo + 1 + i%20, lo + 1 + i%20 + 1 + i%33, hi}
			if i <= amid {
				cuts[lost] = cuts[lost+1]
			}
			return cuts
		}
		// The first prepares what it knows of, and then what it is given of the lost one's; the last one nothing ahead.
		prepare := func(until int) {
			var positions []int
			for i := solvers[0].Batches() - 1; i >= until; i-- {
				for p := cutsOf(i)[0]; p < cutsOf(i)[1]; p++ {
					positions = append(positions, p)
				}
			}
			solvers[0].Prepare(positions)
		}
		prepare(amid + 1)
		corrected := func(c *Coupled, p int) bool {
			r := c.Row(p)
			switch row := c.Target().Row(r); {
			case slices.Equal(row, w.Row(r)):
				return false
			case !slices.Equal(row, whole.Target.Row(r)):
				t.Fatalf("the target at position %d is another", p)
			}
			return true
		}
		for i := range solvers[0].Batches() {
			lo, hi := solvers[0].Bounds(i)
			for p := lo; p < hi; p++ {
				if got, want := corrected(solvers[0], p), i > amid && p < cutsOf(i)[1]; got != want {
					t.Fatalf("batch %d, position %d is prepared: %v", i, p, got)
				}
			}
		}
		size := len(want) / rows
		got := make([]byte, len(want))
		for i := solvers[0].Batches() - 1; i >= 0; i-- {
			if i == amid {
				prepare(0)
			}
			cuts := cutsOf(i)
			type made struct{ target, decoded *tensor.Matrix }
			told := make([]made, len(solvers))
			for k, c := range solvers {
				n := cuts[k+1] - cuts[k]
				if n == 0 {
					continue
				}
				q, err := c.Quantize(t.Context(), i, cuts[k], cuts[k+1])
				if err != nil {
					t.Fatal(err)
				}
				data := typ.PackWeight(q)
				told[k] = made{tensor.New(n, cols), tensor.New(n, cols)}
				typ.ParseWeight(data, n, cols).DecodeTo(told[k].decoded)
				for p := cuts[k]; p < cuts[k+1]; p++ {
					copy(told[k].target.Row(p-cuts[k]), c.Target().Row(c.Row(p)))
					copy(got[c.Row(p)*size:], data[(p-cuts[k])*size:][:size])
				}
				lo, hi := c.Bounds(i)
				for p := lo; p < hi; p++ {
					if mine := cuts[k] <= p && p < cuts[k+1]; corrected(c, p) != mine {
						t.Fatalf("batch %d, solver %d: position %d is corrected: %v", i, k, p, !mine)
					}
				}
			}
			for k := range solvers {
				for other, to := range solvers {
					if other != k && told[k].target != nil && !(other == lost && i <= amid) {
						to.Take(cuts[k], cuts[k+1], told[k].target, told[k].decoded)
					}
				}
			}
		}
		for p := range rows {
			if !corrected(solvers[0], p) {
				t.Fatalf("the target at position %d is not known", p)
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
