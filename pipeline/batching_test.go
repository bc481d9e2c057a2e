package pipeline

import (
	"cmp"
	"context"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestBatching: a method and a transform are told the same of the calibration text, but for rounding, whether all of it is one batch, in
// memory, or three, the first one shorter, in files, with experts and the sums of gradients taken some at a time.
func TestBatching(t *testing.T) {
	defer func(a, b int, c, d int64) { batchTokens, leastEven, statsBytes, outputBudget = a, b, c, d }(batchTokens, leastEven, statsBytes, outputBudget)
	for _, src := range []*testmodel.Source{testmodel.Experts(), testmodel.CommandR()} {
		t.Run(src.Name(), func(t *testing.T) { checkBatching(t, src) })
	}
	archs, ok := shared.Lookup("archs")
	if !ok || testing.Short() {
		return
	}
	for _, name := range []string{"deepseek3", "gemma4-e"} { // heads that are sites; what is kept beside the residual stream
		t.Run(name, func(t *testing.T) {
			src, err := hf.Open(filepath.Join(archs, name), hf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			checkBatching(t, src)
		})
	}
}

func checkBatching(t *testing.T, src Source) {
	const seqs, seqLen = 5, 16
	m := openModel(t, src)
	vocab, experts := m.Vocab, m.ExpertsUsed() > 0
	set := &calib.Set{SeqLen: seqLen, Sequences: make([][]int32, seqs)}
	for i := range seqs * seqLen {
		set.Sequences[i/seqLen] = append(set.Sequences[i/seqLen], int32((i*i*7+i*31+11)%(vocab-1)))
	}
	run := func(batches, batch int, memory, together int64) []told {
		batchTokens, leastEven, statsBytes, outputBudget = batch*seqLen, batch*seqLen, together, together<<15
		if n := textBatches(openModel(t, src), seqs, seqLen).batches(); n != batches {
			t.Fatalf("%d batches of at most %d sequences, want %d", n, batch, batches)
		}
		hears := &hearing{}
		mustRun(t, src, Recipe{Method: hears, Type: ggml.Q4_0, Output: ggml.Q8_0, OutputHessian: OutputHessianOn},
			Options{Calib: set, Memory: memory})
		slices.SortStableFunc(hears.all, func(a, b told) int { return cmp.Or(a.site-b.site, cmp.Compare(a.linear, b.linear)) })
		return hears.all
	}
	want, got := run(1, seqs, 0, 1<<30), run(3, 2, 1, 1)
	if len(got) != len(want) {
		t.Fatalf("%d matrices, of one batch %d", len(got), len(want))
	}
	for i := range want {
		a, b := want[i], got[i]
		if a.what == "drift" && b.values == nil && experts {
			continue // of one that is not to be corrected, whose tokens were counted in the first pass
		}
		if a.site != b.site || a.what != b.what || len(a.values) != len(b.values) {
			t.Fatalf("%s of %d values, site %d; of one batch %s of %d, site %d", b.what, len(b.values), b.site, a.what, len(a.values), a.site)
		}
		// Where few of a batch's tokens reach an expert, products round them in another way.
		if e := apart(b.values, a.values); !slices.Equal(a.values, b.values) && !(e < 0.1) {
			t.Errorf("site %d: %s is off by %.2g", b.site, b.what, e)
		}
	}
}

// told is a matrix, or a vector, that a method is told.
type told struct {
	site   int
	linear float64 // tells a site's linears, which come in any order, from each other; 0 of what they share
	what   string
	values []float64
}

// hearing is a method that rounds to nearest, and a transform that scales nothing, and both note what they are told.
type hearing struct {
	mu    sync.Mutex
	sites int
	all   []told
}

func (h *hearing) Name() string             { return "hearing" }
func (h *hearing) Memory(out, in int) int64 { return RTN.Memory(out, in) }
func (h *hearing) Needs() quant.Needs {
	return quant.Needs{Stats: true, Original: true, Outputs: true, Trials: true, Transforms: []quant.Transform{h}}
}

func (h *hearing) note(linear float64, what string, m *tensor.Matrix) {
	var values []float64
	for i := 0; m != nil && i < m.Rows; i++ {
		for _, v := range m.Row(i) {
			values = append(values, float64(v))
		}
	}
	h.all = append(h.all, told{h.sites, linear, what, values})
}

func (h *hearing) Open(in *quant.Stats) quant.Solver {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sites++
	h.note(0, "H", in.H)
	h.note(0, "drift", in.Drift)
	h.note(0, "shortfall", in.Shortfall)
	h.all = append(h.all, told{h.sites, 0, "the sum", slices.Clone(in.Sum)}, told{h.sites, 0, "the number of tokens", []float64{float64(in.Tokens)}})
	return h
}

// Quantize is of the site that was opened last: a site's linears are done before the next is opened.
func (h *hearing) Quantize(_ context.Context, j quant.Job) (quant.Result, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	linear := 1.
	for i := range j.W.Rows {
		for _, v := range j.W.Row(i) {
			linear += math.Abs(float64(v))
		}
	}
	for _, o := range j.Outputs {
		h.note(linear, "H_O", o)
	}
	return quant.Result{Weight: quant.RTN(j.W, nil, j.Grid), Target: j.W}, nil
}

func (h *hearing) Transform(_ context.Context, g *quant.Group) (*quant.Folding, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sites++
	n := g.Sample.Cols
	h.note(0, "the largest input", tensor.FromSlice(1, n, g.In.MaxAbs()))
	h.note(0, "the mean square", tensor.FromSlice(1, n, g.In.MeanSquare()))
	h.note(0, "the sample", g.Sample)
	// Scales have what the method is told of the inputs that judge them noted. They lower no error, and are not taken.
	return &quant.Folding{Group: g.Name, Scale: slices.Repeat([]float32{1}, n)}, nil
}
