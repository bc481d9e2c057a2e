package gptq

import (
	"context"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// gradientHessian returns Σ ggᵀ of correlated gradients.
func gradientHessian(seed uint64, n, tokens int) *tensor.Matrix {
	rng := rand.New(rand.NewPCG(seed, 1))
	mix, g := tensor.New(n, n), tensor.New(tokens, n)
	for i := range mix.Data {
		mix.Data[i] = float32(rng.NormFloat64() / math.Sqrt(float64(n)))
	}
	for i := range n {
		mix.Row(i)[i] += 0.3
	}
	z := tensor.New(tokens, n)
	for i := range z.Data {
		z.Data[i] = float32(rng.NormFloat64())
	}
	gemm.NN(g, 1, z, mix, kernels.F32)
	h := tensor.New(n, n)
	gemm.Syrk(h, g, kernels.F32)
	return h
}

// coupledError is tr(H_O·E·H·Eᵀ).
func coupledError(w *tensor.Matrix, q *quant.Weight, h, outputs *tensor.Matrix) float64 {
	e := tensor.New(w.Rows, w.Cols)
	q.DecodeTo(e)
	for i := range e.Data {
		e.Data[i] = w.Data[i] - e.Data[i]
	}
	eh := tensor.New(w.Rows, w.Cols)
	gemm.NN(eh, 1, e, h, kernels.F32)
	m := tensor.New(w.Rows, w.Rows)
	gemm.NT(m, 1, eh, e)
	var sum float64
	for i, v := range outputs.Data {
		sum += float64(v) * float64(m.Data[i])
	}
	return sum
}

// TestCoupled: with outputs that matter together the error that counts is well below that of rows each for itself, as OutputGain
// predicts, on grids of codes and of words alike.
func TestCoupled(t *testing.T) {
	const rows, cols = 64, 256
	w, in := problem(11, rows, cols, 2*cols)
	outputs, held := gradientHessian(3, rows, 4096), gradientHessian(3, rows, 4096)
	predicted, err := OutputGain([]*tensor.Matrix{outputs}, []*tensor.Matrix{held})
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range []*ggml.Type{ggml.Q4_0, ggml.Q3_K, ggml.IQ4_NL, ggml.IQ2_XS} {
		f, err := NewFactor(t.Context(), in.H, typ.Grid, Options{})
		if err != nil {
			t.Fatal(err)
		}
		alone, err := f.Quantize(t.Context(), w, typ.Grid)
		if err != nil {
			t.Fatal(err)
		}
		together, err := f.QuantizeCoupled(t.Context(), w, typ.Grid, []*tensor.Matrix{outputs})
		if err != nil {
			t.Fatal(err)
		}
		share := coupledError(w, together, in.H, outputs) / coupledError(w, alone, in.H, outputs)
		if !(share < 0.9 && math.Abs(share-predicted) < 0.15) {
			t.Errorf("%s: %.3f of the error of rows by themselves, predicted %.3f", typ.Name, share, predicted)
		}
	}
}

// TestCoupledTargets: each batch's rows are what Quantize makes of the targets in the comment of coupled.go, computed plainly in
// float64; and with outputs that do not matter together, of the weights themselves.
func TestCoupledTargets(t *testing.T) {
	for _, rows := range []int{37, 1030} { // of batches of 4 rows, and of more than there are lanes
		testCoupledTargets(t, rows)
	}
}

func testCoupledTargets(t *testing.T, rows int) {
	const cols = 64
	w, in := problem(12, rows, cols, 2*cols)
	f, err := NewFactor(t.Context(), in.H, ggml.Q4_0.Grid, Options{})
	if err != nil {
		t.Fatal(err)
	}
	outputs := gradientHessian(4, rows, 2048)
	b, err := newBatches(outputs)
	if err != nil {
		t.Fatal(err)
	}
	q, err := f.QuantizeCoupled(t.Context(), w, ggml.Q4_0.Grid, []*tensor.Matrix{outputs})
	if err != nil {
		t.Fatal(err)
	}
	decoded := tensor.New(rows, cols)
	q.DecodeTo(decoded)
	for i := range b.count {
		lo, hi := b.bounds(i)
		target := tensor.New(hi-lo, cols)
		for c := range cols {
			sum := make([]float64, hi-lo) // Σ L_kBᵀ·e_k, then L_BB⁻ᵀ times it
			for k := hi; k < rows; k++ {
				r := b.order[k]
				for j := range sum {
					sum[j] += float64(b.l.Row(k)[lo+j]) * (float64(w.Row(r)[c]) - float64(decoded.Row(r)[c]))
				}
			}
			for j := len(sum) - 1; j >= 0; j-- {
				for k := j + 1; k < len(sum); k++ {
					sum[j] -= float64(b.l.Row(lo + k)[lo+j]) * sum[k]
				}
				sum[j] /= float64(b.l.Row(lo + j)[lo+j])
				target.Row(j)[c] = w.Row(b.order[lo+j])[c] + float32(sum[j])
			}
		}
		want, err := f.Quantize(t.Context(), target, ggml.Q4_0.Grid)
		if err != nil {
			t.Fatal(err)
		}
		differ := 0
		for j := range hi - lo {
			for c := range cols {
				if q.Codes[b.order[lo+j]*cols+c] != want.Codes[j*cols+c] {
					differ++
				}
			}
		}
		if differ > (hi-lo)*cols/50 { // ties that float32 breaks otherwise
			t.Errorf("batch %d: %d of %d codes differ", i, differ, (hi-lo)*cols)
		}
	}
	identity := tensor.New(rows, rows)
	for i := range rows {
		identity.Row(i)[i] = 3
	}
	for _, blocks := range [][]*tensor.Matrix{{identity}, {identity.View(0, 17, 0, 17), identity.View(17, rows, 17, rows)}} {
		one, err := f.QuantizeCoupled(t.Context(), w, ggml.Q4_0.Grid, blocks)
		if err != nil {
			t.Fatal(err)
		}
		plain, err := f.Quantize(t.Context(), w, ggml.Q4_0.Grid)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(one.Codes, plain.Codes) || !slices.Equal(one.D, plain.D) {
			t.Error("outputs that do not matter together change the weights")
		}
	}
}

// TestCoupledThreads: the same at any number of goroutines.
func TestCoupledThreads(t *testing.T) {
	w, in := problem(13, 150, 256, 512)
	outputs := []*tensor.Matrix{gradientHessian(5, 100, 512), gradientHessian(6, 50, 512)}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var first *quant.Weight
	for _, threads := range []int{1, 3} {
		runtime.GOMAXPROCS(threads)
		f, err := NewFactor(t.Context(), in.H, ggml.Q3_K.Grid, Options{})
		if err != nil {
			t.Fatal(err)
		}
		q, err := f.QuantizeCoupled(t.Context(), w, ggml.Q3_K.Grid, outputs)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = q
		} else if !slices.Equal(first.Codes, q.Codes) || !slices.Equal(first.D, q.D) || !slices.Equal(first.Sc, q.Sc) {
			t.Errorf("%d threads: not the same as with 1", threads)
		}
	}
}

// TestJoint: linears that share inputs and are quantized at the same time become what each does alone, also where one of them fails.
func TestJoint(t *testing.T) {
	const cols = 256
	grid := ggml.Q3_K.Grid
	rows := []int{48, 20, 37}
	var weights, outputs []*tensor.Matrix
	var in *quant.Stats
	for i, n := range rows {
		var w *tensor.Matrix
		w, in = problem(14, n, cols, 2*cols)
		weights, outputs = append(weights, w), append(outputs, gradientHessian(uint64(7+i), n, 512))
	}
	factor := func() *Factor {
		f, err := NewFactor(t.Context(), in.H, grid, Options{})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	shared := factor()
	for _, fails := range []bool{false, true, false} {
		if fails {
			outputs[1].Row(0)[0] = -1
		} else {
			outputs[1] = gradientHessian(8, rows[1], 512)
		}
		got, errs := make([]*quant.Weight, len(rows)), make([]error, len(rows))
		var wg sync.WaitGroup
		for i := range rows {
			wg.Go(func() { got[i], errs[i] = shared.QuantizeCoupled(t.Context(), weights[i], grid, outputs[i:i+1]) })
		}
		wg.Wait()
		for i := range rows {
			if failed := errs[i] != nil; failed != (fails && i == 1) {
				t.Fatalf("linear %d: error %v", i, errs[i])
			} else if failed {
				continue
			}
			want, err := factor().QuantizeCoupled(t.Context(), weights[i], grid, outputs[i:i+1])
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got[i].Codes, want.Codes) || !slices.Equal(got[i].D, want.D) || !slices.Equal(got[i].Sc, want.Sc) {
				t.Errorf("linear %d is another beside others", i)
			}
		}
		if j := shared.joints[grid]; j.members != 0 || len(j.waiting) != 0 {
			t.Errorf("%d members and %d requests are left", j.members, len(j.waiting))
		}
	}
}

func BenchmarkCoupled(b *testing.B) {
	for _, size := range [][2]int{{256, 256}, {768, 256}, {256, 768}, {1024, 1024}, {2048, 1024}} {
		w, in := problem(1, size[0], size[1], 2*size[1])
		f, err := NewFactor(context.Background(), in.H, ggml.Q3_K.Grid, Options{})
		if err != nil {
			b.Fatal(err)
		}
		h := gradientHessian(2, size[0], 2*size[0])
		b.Run("alone", func(b *testing.B) {
			for b.Loop() {
				f.Quantize(context.Background(), w, ggml.Q3_K.Grid)
			}
		})
		b.Run("coupled", func(b *testing.B) {
			for b.Loop() {
				f.QuantizeCoupled(context.Background(), w, ggml.Q3_K.Grid, []*tensor.Matrix{h})
			}
		})
	}
}
