package gptq

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// problem returns a weight and the statistics of correlated inputs: a few hidden factors, noise, and features of very
// different size, as a transformer's are.
func problem(seed uint64, rows, cols, tokens int) (*tensor.Matrix, *quant.Stats) {
	rng := rand.New(rand.NewPCG(seed, 0))
	const factors = 8
	mix := tensor.New(factors, cols)
	for i := range mix.Data {
		mix.Data[i] = float32(rng.NormFloat64())
	}
	size := make([]float32, cols)
	for j := range size {
		size[j] = float32(math.Exp(rng.NormFloat64()))
	}
	x := tensor.New(tokens, cols)
	for t := range tokens {
		row := x.Row(t)
		for k := range factors {
			f := float32(rng.NormFloat64())
			for j := range row {
				row[j] += f * mix.Row(k)[j]
			}
		}
		for j := range row {
			row[j] = size[j] * (row[j] + float32(rng.NormFloat64()))
		}
	}
	w := tensor.New(rows, cols)
	for i := range w.Data {
		w.Data[i] = float32(rng.NormFloat64()) * 0.05
	}
	in := quant.NewStats(cols)
	in.Observe(x)
	return w, in
}

func quantize(t *testing.T, w *tensor.Matrix, in *quant.Stats, g quant.Grid, opt Options) *quant.Weight {
	t.Helper()
	f, err := NewFactor(t.Context(), in.H, g, opt)
	if err != nil {
		t.Fatal(err)
	}
	q, err := f.Quantize(t.Context(), w, g)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func outputError(w *tensor.Matrix, q *quant.Weight, h *tensor.Matrix) float64 {
	got := tensor.New(w.Rows, w.Cols)
	q.DecodeTo(got)
	energy := func(a *tensor.Matrix) (sum float64) { // quant.OutputError rounds, and tests compare small differences
		y := tensor.New(a.Rows, a.Cols)
		gemm.MatMulF32(y, a, h)
		for i, v := range y.Data {
			sum += float64(v) * float64(a.Data[i])
		}
		return sum
	}
	lost := w.Clone()
	for i, v := range got.Data {
		lost.Data[i] -= v
	}
	return energy(lost) / energy(w.Clone())
}

// reference quantizes one row as Optimal Brain Quantization does, of which GPTQ is the fast form: after each column, it
// is taken out of the inverse Hessian by Gaussian elimination (arXiv:2208.11580, equation 3). Everything is float64.
func reference(f *Factor, row []float32, q *quant.Weight, r int) []int8 {
	n := len(row)
	sym, damped := mat.NewSymDense(n, nil), f.damped(0, n)
	for i := range n {
		for j := range i + 1 {
			sym.SetSym(i, j, float64(damped.Row(i)[j]))
		}
	}
	var chol mat.Cholesky
	if !chol.Factorize(sym) {
		panic("not positive definite")
	}
	var inv mat.SymDense
	if err := chol.InverseTo(&inv); err != nil {
		panic(err)
	}
	hinv := mat.DenseCopyOf(&inv)
	w := make([]float64, n)
	for j, v := range row {
		w[j] = float64(v)
	}
	codes := make([]int8, n)
	for _, c := range slices.Backward(f.order) {
		g := q.Grid.(*quant.Affine)
		b := q.Block(r, c/g.Block)
		scale, minimum := g.Scale(&b, c%g.Block/g.Group)
		codes[c] = g.Nearest(float32(w[c]), scale, minimum)
		v := float64(float32(scale*g.Level(codes[c])) - minimum)
		d := (w[c] - v) / hinv.At(c, c)
		for j := range n {
			w[j] -= d * hinv.At(c, j)
		}
		pivot := hinv.At(c, c)
		for i := range n {
			if i == c {
				continue
			}
			k := hinv.At(i, c) / pivot
			for j := range n {
				hinv.Set(i, j, hinv.At(i, j)-k*hinv.At(c, j))
			}
		}
		for j := range n {
			hinv.Set(c, j, 0)
			hinv.Set(j, c, 0)
		}
		hinv.Set(c, c, math.Inf(1)) // done: no later column reads it
	}
	return codes
}

// TestReference compares the sweep with the reference on every kind of grid, for sizes on both sides of a lazy block.
func TestReference(t *testing.T) {
	for _, typ := range []*ggml.Type{ggml.Q4_1, ggml.IQ4_NL, ggml.Q3_K} {
		for _, cols := range []int{typ.BlockLen, 256} {
			if testing.Short() && cols > typ.BlockLen { // Gaussian elimination takes minutes under the race detector
				continue
			}
			for _, opt := range []Options{{StaticScales: true}, {}, {NoActOrder: true}} {
				w, in := problem(uint64(cols), 2, cols, 2*cols)
				f, err := NewFactor(t.Context(), in.H, typ.Grid, opt)
				if err != nil {
					t.Fatal(err)
				}
				q := quant.NewWeight(typ.Grid, w.Rows, w.Cols)
				if err := f.inBands(t.Context(), w.Rows, f.sweep(q, typ.Grid.(*quant.Affine), w)); err != nil {
					t.Fatal(err)
				}
				wrong := 0
				for r := range w.Rows {
					want := reference(f, w.Row(r), q, r)
					for c, code := range want {
						if q.Codes[r*cols+c] != code {
							wrong++
						}
					}
				}
				// Rounding in float32 may tip a value that lies between two codes, and then all after it in its row.
				if limit := len(q.Codes) / 100; wrong > limit {
					t.Errorf("%s, %d columns, %+v: %d of %d codes differ", typ.Name, cols, opt, wrong, len(q.Codes))
				}
			}
		}
	}
}

// TestBetter holds every step to what it is for: GPTQ beats rounding to nearest, refinement beats GPTQ, and more passes
// never lose.
func TestBetter(t *testing.T) {
	w, in := problem(1, 48, 512, 2048)
	for _, typ := range ggml.Types {
		g := typ.Grid
		if g == nil {
			continue
		}
		rtn := outputError(w, quant.RTN(w, in.Importance(), g), in.H)
		_, words := g.(*quant.Lattice) // without descent
		swept := outputError(w, quantize(t, w, in, g, Options{NoRefine: true}), in.H)
		last := swept
		passes := []int{1, 2, 4}
		if words {
			passes = passes[:1]
		}
		for _, passes := range passes {
			e := outputError(w, quantize(t, w, in, g, Options{Refine: passes}), in.H)
			if e > last*(1+1e-4) {
				t.Errorf("%s: %d passes: error %.6g after %.6g", typ.Name, passes, e, last)
			}
			last = e
		}
		t.Logf("%-7s rtn %.3e, gptq %.3e, refined %.3e", typ.Name, rtn, swept, last)
		if !(swept < rtn && last < swept) {
			t.Errorf("%s: error %.6g to nearest, %.6g with GPTQ, %.6g refined", typ.Name, rtn, swept, last)
		}
	}
}

// TestThreads: the codes and scales are the same whatever the number of goroutines, over more columns than are gathered,
// or more rows than a band has.
func TestThreads(t *testing.T) {
	testThreads(t, ggml.Q4_K, 37, 768)
	testThreads(t, ggml.Q4_0, 2*bandRows+37, 128)
	testThreads(t, ggml.IQ2_XXS, 37, 768)
}

func testThreads(t *testing.T, typ *ggml.Type, rows, cols int) {
	w, in := problem(2, rows, cols, 2*cols)
	drifted, _ := problem(3, 37, cols, 1)
	in.ObserveDrift(w.View(0, 37, 0, cols), drifted) // any difference will do
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var first *quant.Weight
	for _, threads := range []int{1, 2, 5} {
		runtime.GOMAXPROCS(threads)
		f, err := NewFactor(t.Context(), in.H, typ.Grid, Options{})
		if err != nil {
			t.Fatal(err)
		}
		q, err := f.Quantize(t.Context(), f.Correct(w, in), typ.Grid)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = q
			continue
		}
		if !slices.Equal(first.Codes, q.Codes) || !slices.Equal(first.D, q.D) || !slices.Equal(first.DMin, q.DMin) ||
			!slices.Equal(first.Sc, q.Sc) || !slices.Equal(first.M, q.M) {
			t.Errorf("%v, %d rows, %d threads: not the same as with 1", typ, rows, threads)
		}
	}
}

// TestRows: a row's codes and scales do not depend on the rows beside it, in whichever lane and band it is.
func TestRows(t *testing.T) {
	const cols, from = 544, bandRows + 5
	for _, typ := range []*ggml.Type{ggml.Q4_0, ggml.IQ4_NL} {
		w, in := problem(7, from+18, cols, 2*cols)
		all := quantize(t, w, in, typ.Grid, Options{Refine: 2})
		q := quantize(t, w.View(from, w.Rows, 0, cols), in, typ.Grid, Options{Refine: 2})
		if !slices.Equal(q.Codes, all.Codes[from*cols:]) || !slices.Equal(q.D, all.D[len(all.D)-len(q.D):]) {
			t.Errorf("%s: the last %d of %d rows are not the same alone", typ, q.Rows, w.Rows)
		}
	}
}

// TestDead: inputs that no token excites are counted, keep their nearest values, and disturb nothing else.
func TestDead(t *testing.T) {
	w, in := problem(3, 8, 256, 1024)
	for _, dead := range []int{0, 100, 255} {
		for j := range 256 {
			in.H.Row(dead)[j], in.H.Row(j)[dead] = 0, 0
		}
	}
	f, err := NewFactor(t.Context(), in.H, ggml.Q4_K.Grid, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if f.Dead != 3 {
		t.Errorf("%d dead inputs, want 3", f.Dead)
	}
	q, err := f.Quantize(t.Context(), w, ggml.Q4_K.Grid)
	if err != nil {
		t.Fatal(err)
	}
	got := tensor.New(w.Rows, w.Cols)
	q.DecodeTo(got)
	for r := range w.Rows {
		b := q.Block(r, 0)
		for _, c := range []int{0, 100, 255} {
			scale, minimum := q.Grid.(*quant.Affine).Scale(&b, c/32)
			if want := q.Grid.(*quant.Affine).Nearest(w.Row(r)[c], scale, minimum); b.Codes[c] != want {
				t.Errorf("row %d, dead column %d: code %d, nearest is %d", r, c, b.Codes[c], want)
			}
		}
	}
	if e := quant.OutputError(w, got, in.H); !(e < 0.01) {
		t.Errorf("error %v beside dead inputs", e)
	}
	// Nothing at all is known: every weight is rounded to nearest.
	in.H.Zero()
	q = quantize(t, w, in, ggml.Q4_K.Grid, Options{})
	for r := range w.Rows {
		b := q.Block(r, 0)
		for c, v := range w.Row(r) {
			scale, minimum := q.Grid.(*quant.Affine).Scale(&b, c/32)
			if want := q.Grid.(*quant.Affine).Nearest(v, scale, minimum); b.Codes[c] != want {
				t.Errorf("row %d, column %d, all dead: code %d, nearest is %d", r, c, b.Codes[c], want)
			}
		}
	}
}

// TestDamping: it rises until a singular Hessian can be factored, and says so. What failed before leaves no trace.
func TestDamping(t *testing.T) {
	_, in := problem(4, 1, 64, 8) // 8 tokens: rank 8
	h := in.H.Clone()
	f, err := NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{Damping: 1e-12})
	if err != nil {
		t.Fatal(err)
	}
	if f.Damping <= 1e-12 || f.Damping > 0.01 {
		t.Errorf("damping %v", f.Damping)
	}
	if !slices.Equal(in.H.Data, h.Data) {
		t.Error("the Hessian has changed")
	}
	once, err := NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{Damping: f.Damping})
	if err != nil {
		t.Fatal(err)
	}
	for i := range f.l.Rows {
		if !slices.Equal(f.l.Row(i)[:i+1], once.l.Row(i)[:i+1]) {
			t.Fatalf("row %d of the factor is not what its damping gives at once", i)
		}
	}
	_, in = problem(4, 1, 64, 256)
	if f, err = NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{Damping: 0.05}); err != nil || f.Damping != 0.05 {
		t.Errorf("damping %v, error %v; want the 0.05 asked for", f.Damping, err)
	}
	for _, damping := range []float64{-1, math.NaN()} {
		if _, err = NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{Damping: damping}); err == nil ||
			!strings.Contains(err.Error(), "not above 0") {
			t.Errorf("damping %v: error %v", damping, err)
		}
	}
	in.H.Row(7)[7] = float32(math.Inf(1))
	if _, err = NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{}); err == nil ||
		!strings.Contains(err.Error(), "diagonal 7") {
		t.Errorf("infinite Hessian: error %v", err)
	}
}

// TestCorrect: where the drifted inputs are a linear function of the original ones, the corrected weight undoes it.
func TestCorrect(t *testing.T) {
	const n, tokens = 32, 1 << 15
	rng := rand.New(rand.NewPCG(5, 0))
	x, drifted := tensor.New(tokens, n), tensor.New(tokens, n)
	for i := range x.Data {
		x.Data[i] = float32(rng.NormFloat64())
	}
	for k := range tokens {
		a, b := x.Row(k), drifted.Row(k)
		for j := range b {
			b[j] = 0.9*a[j] + 0.1*a[(j+1)%n]
		}
	}
	w, _ := problem(5, 4, n, 1)
	in := quant.NewStats(n)
	in.Observe(drifted)
	difference := x.Clone()
	for i, v := range drifted.Data {
		difference.Data[i] -= v
	}
	in.ObserveDrift(difference, drifted)
	f, err := NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{Damping: 1e-6})
	if err != nil {
		t.Fatal(err)
	}
	fixed := f.Correct(w, in)
	var num, den float64
	for k := range 256 {
		for r := range w.Rows {
			var want, got float64
			for j := range n {
				want += float64(w.Row(r)[j]) * float64(x.Row(k)[j])
				got += float64(fixed.Row(r)[j]) * float64(drifted.Row(k)[j])
			}
			num += (got - want) * (got - want)
			den += want * want
		}
	}
	// The shrinkage of n/tokens is all that is left.
	if e := math.Sqrt(num / den); e > 2*float64(n)/tokens {
		t.Errorf("relative error %v after correction", e)
	}
	// A residual connection that is off by x itself is made up for by the identity.
	in = quant.NewStats(n)
	in.Observe(x)
	in.ObserveShortfall(x, x)
	if f, err = NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{Damping: 1e-6}); err != nil {
		t.Fatal(err)
	}
	fixed = f.Correct(tensor.New(n, n), in)
	for i := range n {
		for j, v := range fixed.Row(i) {
			want := 0.0
			if i == j {
				want = 1
			}
			if math.Abs(float64(v)-want) > 2*float64(n)/tokens {
				t.Fatalf("residual correction [%d %d] is %v, want %v", i, j, v, want)
			}
		}
	}
}

func TestCancel(t *testing.T) {
	w, in := problem(6, 4, 64, 128)
	f, err := NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Quantize(ctx, w, ggml.Q4_0.Grid); !errors.Is(err, context.Canceled) {
		t.Errorf("Quantize after cancellation: %v", err)
	}
	if _, err := NewFactor(ctx, in.H, ggml.Q4_0.Grid, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("NewFactor after cancellation: %v", err)
	}
	err = f.inBands(ctx, 3*bandRows, func(context.Context, *band) error {
		t.Error("a band is begun after cancellation")
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("bands after cancellation: %v", err)
	}
}
