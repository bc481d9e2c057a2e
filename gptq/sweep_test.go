package gptq

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// plainSweep is GPTQ one row and one column at a time, every target computed when its turn comes. TestReference compares
// with the paper's own formulas.
func plainSweep(f *Factor, q *quant.Weight, w *tensor.Matrix) {
	g := q.Grid.(*quant.Affine)
	if f.block == 0 {
		f.fitAll(q, g, w)
	}
	for r := range w.Rows {
		errs := make([]float32, w.Cols)
		target := func(p int) float32 {
			var sum float32
			for k := p + 1; k < w.Cols; k++ {
				sum += errs[k] * f.l.Row(k)[p]
			}
			return w.Row(r)[f.order[p]] + sum/f.l.Row(p)[p]
		}
		for i, c := range slices.Backward(f.order) {
			if start := i + 1 - g.Block; f.block != 0 && (i+1)%g.Block == 0 {
				t := newFitter(g, f)
				first := c / g.Block * g.Block
				for k := range g.Block {
					t.w[f.order[start+k]-first] = target(start + k)
				}
				t.fit(q, r, r+1, start)
			}
			b := q.Block(r, c/g.Block)
			scale, minimum := g.Scale(&b, c%g.Block/g.Group)
			code := g.Nearest(target(i), scale, minimum)
			q.Codes[r*q.Cols+c] = code
			errs[i] = w.Row(r)[c] - (float32(scale*g.Level(code)) - minimum)
		}
	}
}

// TestSweep compares the sweep by blocks of columns and lanes of rows with the plain one. Sums in another order may turn
// a code that lies between two, or a block's scales, and all after them; few do. Rounding errors to bfloat16 turns more:
// the output's error is up to 4% larger or 3% smaller then, and 0.1% larger in the mean.
func TestSweep(t *testing.T) {
	var ratios, runs float64
	for _, rows := range []int{1, 15, 16, 37} {
		all, seen := problem(uint64(rows), rows, 768, 2*768)
		for _, typ := range []*ggml.Type{ggml.Q4_0, ggml.Q4_1, ggml.Q8_0, ggml.IQ4_NL, ggml.Q4_K, ggml.Q6_K} {
			for _, opt := range []Options{{}, {NoActOrder: true}, {StaticScales: true}} {
				if testing.Short() && (rows < 16 || opt.NoActOrder) {
					continue
				}
				cols := 672 // more than lazyColumns
				if typ.BlockLen > 32 {
					cols = 768
				}
				w, in := all.View(0, rows, 0, cols), &quant.Stats{Tokens: seen.Tokens, H: seen.H.View(0, cols, 0, cols)}
				f, err := NewFactor(t.Context(), in.H, typ.Grid, opt)
				if err != nil {
					t.Fatal(err)
				}
				want, got := quant.NewWeight(typ.Grid, rows, cols), quant.NewWeight(typ.Grid, rows, cols)
				plainSweep(f, want, w)
				previous := kernels.CurrentTier()
				for _, tier := range kernels.Tiers() {
					kernels.SetTier(tier)
					err := f.inBands(t.Context(), w.Rows, f.sweep(got, typ.Grid.(*quant.Affine), w))
					kernels.SetTier(previous)
					if err != nil {
						t.Fatal(err)
					}
					differ := 0
					for i, c := range want.Codes {
						if got.Codes[i] != c {
							differ++
						}
					}
					if tier.Rounds() {
						if rows > 1 {
							ratio := outputError(w, got, in.H) / outputError(w, want, in.H)
							if ratio > 1.06 {
								t.Errorf("%s, %d rows, %+v, %s: the output error is %.4f times the plain sweep's", typ, rows, opt, tier,
									ratio)
							}
							ratios += ratio
							runs++
						}
						continue
					}
					if differ > len(want.Codes)/50+typ.BlockLen {
						t.Errorf("%s, %d rows, %+v, %s: %d of %d codes differ", typ, rows, opt, tier, differ, len(want.Codes))
					}
					differ = 0
					for i, d := range want.D {
						if got.D[i] != d {
							differ++
						}
					}
					if differ > len(want.D)/50+1 {
						t.Errorf("%s, %d rows, %+v, %s: %d of %d scales differ", typ, rows, opt, tier, differ, len(want.D))
					}
				}
			}
		}
	}
	if ratios > 1.01*runs {
		t.Errorf("bfloat16: the output error is %.4f times the plain sweep's in the mean", ratios/runs)
	}
}

// TestSpans compares, to the last bit, what a window comes to with the spans that its grid has and without.
func TestSpans(t *testing.T) {
	const rows = kernels.Lanes
	static := Options{StaticScales: true}
	whole := *ggml.Q8_0.Grid.(*quant.Affine) // as formats for servers have it
	whole.Block, whole.Group = 100, 100
	previous := kernels.CurrentTier()
	defer kernels.SetTier(previous)
	for _, c := range []struct {
		grid     *quant.Affine
		opt      Options
		cols, i0 int
	}{
		{ggml.Q4_K.Grid.(*quant.Affine), Options{}, 768, 256},
		{ggml.Q4_0.Grid.(*quant.Affine), Options{}, 672, 160},
		{ggml.Q4_0.Grid.(*quant.Affine), static, 608, 96},
		{ggml.NVFP4.Grid.(*quant.Affine), Options{}, 640, 128},
		{&whole, static, 100, 0},
	} {
		w, in := problem(1, rows, c.cols, 2*c.cols)
		for _, tier := range kernels.Tiers() {
			kernels.SetTier(tier)
			f, err := NewFactor(t.Context(), in.H, c.grid, c.opt)
			if err != nil {
				t.Fatal(err)
			}
			run := func(spans []int) (q *quant.Weight, errs, sums []float32) {
				q = quant.NewWeight(c.grid, rows, c.cols)
				if c.opt.StaticScales {
					f.fitAll(q, c.grid, w)
				}
				e, residual := tensor.New(rows, c.cols-c.i0), tensor.New(rows, c.cols)
				s := newSweeper(f, q, c.grid)
				s.i0, s.i1, s.panels = c.i0, c.cols, f.panelsOf(c.i0, c.cols)
				if spans != nil {
					s.spans = spans
				}
				s.rows(w, residual, e, 0, rows)
				return q, e.Data, residual.Data
			}
			want, wantErrs, wantSums := run([]int{lazyColumns})
			got, errs, sums := run(nil)
			if !slices.Equal(got.Codes, want.Codes) || !slices.Equal(errs, wantErrs) || !slices.Equal(sums, wantSums) {
				t.Errorf("%s, %+v, %d columns: a window differs with its spans", tier, c.opt, c.cols)
			}
		}
	}
}

// BenchmarkLayer takes a layer from its Hessian to the bytes of Q4_K, as the authors' fasterquant and with coordinate
// descent. The inputs are those of internal/interop/gptq_speed.py.
func BenchmarkLayer(b *testing.B) {
	const n, tokens = 4096, 8192
	rng := rand.New(rand.NewPCG(1, 0))
	w, x, h := tensor.New(n, n), tensor.New(tokens, n), tensor.New(n, n)
	for i := range w.Data {
		w.Data[i] = float32(rng.Float64()*2-1) / 64 // as torch.nn.Linear is initialised: within 1/√n
	}
	size := make([]float32, n)
	for j := range size {
		size[j] = 0.5 + rng.Float32()
	}
	for i := range x.Data {
		x.Data[i] = float32(rng.NormFloat64()) * size[i%n]
	}
	gemm.Syrk(h, x, kernels.F32)
	x = nil
	for _, c := range []struct {
		name string
		opt  Options
	}{{"gptq", Options{NoRefine: true}}, {"refined", Options{}}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				f, err := NewFactor(b.Context(), h, ggml.Q4_K.Grid, c.opt)
				if err != nil {
					b.Fatal(err)
				}
				q, err := f.Quantize(b.Context(), w, ggml.Q4_K.Grid)
				if err != nil {
					b.Fatal(err)
				}
				ggml.Q4_K.PackWeight(q)
			}
			b.ReportMetric(float64(n*n)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mweights/s")
		})
	}
}
