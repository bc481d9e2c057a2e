package pipeline

import (
	"math"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestCompare: what the original model has and another lacks is summed by its definition, in every group of a model with
// every bias, and the original's hidden states become those of Forward; in memory with the stored weights, and in files
// with weights that a transform has replaced.
func TestCompare(t *testing.T) {
	tm := testmodel.New("llama3-tied")
	const seqLen = 32
	set := sequences(tm, batchTokens/seqLen+11, seqLen) // four batches, the first one shorter
	for _, memory := range []int64{0, 1} {
		m := openModel(t, tm.Source())
		streamOf := func(keep bool, replace model.ReplaceRows) *stream {
			s, err := newStream(m, set.Sequences, seqLen, keep, newStateBudget(memory), t.TempDir(), replace)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.close(); err != nil {
					t.Error(err)
				}
			})
			return s
		}
		rounded := func(_ string, rows *tensor.Matrix) error {
			_, q := encode(ggml.Q4_0, rows.Clone(), nil)
			for i := range rows.Rows {
				copy(rows.Row(i), q.Row(i))
			}
			return nil
		}
		s, original := streamOf(true, rounded), streamOf(false, nil)
		if original.x.Spilled() != (memory > 0) || original.x.Batches() != 4 {
			t.Fatalf("budget %d: %d batches, in files %v", memory, original.x.Batches(), original.x.Spilled())
		}
		for index := range m.Layers() {
			l, err := m.LoadLayer(index)
			if err != nil {
				t.Fatal(err)
			}
			ol, err := m.LoadLayer(index)
			if err != nil {
				t.Fatal(err)
			}
			weights := make([]*tensor.Matrix, len(ol.Stages))
			for k := range ol.Stages {
				for j, lin := range ol.Stages[k].Sites[0].Linears {
					w, err := lin.Matrix()
					if err != nil {
						t.Fatal(err)
					}
					if weights[k] = w; memory > 0 {
						lin.F32 = w
					}
					_, l.Stages[k].Sites[0].Linears[j].F32 = encode(ggml.Q4_0, w, nil)
				}
			}

			// The original's inputs of the sites, the hidden states that their outputs are added to, and the layer's result.
			inputs, residuals := make([][]*tensor.Matrix, len(ol.Stages)), make([][]*tensor.Matrix, len(ol.Stages))
			var after []*tensor.Matrix
			st := m.NewState()
			err = original.each(func(_ int, x *tensor.Matrix) error {
				st.Enter(m, x.Clone(), seqLen)
				k := 0
				err := ol.Run(t.Context(), st, 0, len(ol.Stages), func(_ *model.Site, in *tensor.Matrix, _ []int) error {
					inputs[k] = append(inputs[k], in.Clone())
					residuals[k] = append(residuals[k], st.X.Clone())
					k++
					return nil
				})
				if err != nil {
					return err
				}
				z := x.Clone()
				after = append(after, z)
				return ol.Forward(t.Context(), m.NewState(), z, seqLen)
			})
			if err != nil {
				t.Fatal(err)
			}

			for k := range l.Stages {
				const rows = 7 // of the sums
				stage := &l.Stages[k]
				site := stage.Sites[0]
				in := quant.NewStats(site.In())
				products, sum := make([]float64, rows*in.H.Cols), make([]float64, rows)
				err := s.visit(t.Context(), l, k, func(i int) error {
					h, x := s.st.In, s.st.X
					in.Observe(h)
					for token := range h.Rows {
						drift := make([]float64, h.Cols)
						for j, v := range h.Row(token) {
							drift[j] = float64(inputs[k][i].Row(token)[j]) - float64(v)
						}
						for r := range rows {
							lacks := drift[r]
							if stage.Adds {
								lacks = float64(residuals[k][i].Row(token)[r]) - float64(x.Row(token)[r])
								for j, v := range weights[k].Row(r) {
									lacks += float64(v) * drift[j]
								}
							}
							sum[r] += lacks
							for j, v := range h.Row(token) {
								products[r*h.Cols+j] += lacks * float64(v)
							}
						}
					}
					return original.alongside(t.Context(), ol, k, i, s, l, 0, []lackSums{in}, true)
				})
				if err != nil {
					t.Fatal(err)
				}
				original.passed(ol, k)
				got, gotSum := in.Drift, in.DriftSum
				if stage.Adds {
					got, gotSum = in.Shortfall, in.ShortfallSum
				}
				if (in.Drift == nil) != stage.Adds || (in.Shortfall == nil) == stage.Adds {
					t.Fatalf("layer %d, %s: drift %v, shortfall %v", index, site.Name, in.Drift != nil, in.Shortfall != nil)
				}
				var values []float64
				for _, v := range got.Data[:rows*got.Cols] {
					values = append(values, float64(v))
				}
				if e := apart(values, products); !(e < 0.005) { // inputs may be of bfloat16
					t.Errorf("budget %d, layer %d, %s: products are off by %.2g", memory, index, site.Name, e)
				}
				if e := apart(gotSum[:rows], sum); !(e < 1e-4) {
					t.Errorf("budget %d, layer %d, %s: sums are off by %.2g", memory, index, site.Name, e)
				}
			}
			if err := s.advance(t.Context(), l); err != nil {
				t.Fatal(err)
			}
			err = original.each(func(i int, x *tensor.Matrix) error {
				if !slices.Equal(x.Data[:x.Rows*x.Cols], after[i].Data) {
					t.Errorf("budget %d, layer %d, batch %d: the original's states are not Forward's", memory, index, i)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// apart returns ‖got−want‖/‖want‖.
func apart(got, want []float64) float64 {
	var num, den float64
	for i, v := range want {
		num += (got[i] - v) * (got[i] - v)
		den += v * v
	}
	return math.Sqrt(num / den)
}

// TestStateBudget: the stores that a budget holds are in memory, and Needs counts the others as files.
func TestStateBudget(t *testing.T) {
	tm := testmodel.New("llama3-tied")
	const seqs, seqLen = 3, 8
	set := sequences(tm, seqs, seqLen)
	m := openModel(t, tm.Source())
	plan, err := NewPlan(tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_0})
	if err != nil {
		t.Fatal(err)
	}
	x, a, h := stateBytes(seqs*seqLen, m.Dim), stateBytes(seqs*seqLen, m.Carried()), hiddenBytes(seqs*seqLen, seqLen, m.Hidden())
	if h == 0 {
		t.Fatal("the model keeps no hidden activations")
	}
	for _, c := range []struct {
		budget  int64
		inFile  [4]bool // the stream's two stores, the original's, and the stream's of hidden activations
		inFiles int64
	}{
		{0, [4]bool{}, 0},
		{1, [4]bool{true, true, true, true}, x + a + x + h},
		{x, [4]bool{false, true, true, true}, a + x + h},
		{x + a, [4]bool{false, false, true, true}, x + h},
		{x + a + x, [4]bool{false, false, false, true}, h},
		{x + a + x + h, [4]bool{}, 0},
	} {
		budget := newStateBudget(c.budget)
		s, err := newStream(m, set.Sequences, seqLen, true, budget, t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		original, err := newStream(m, set.Sequences, seqLen, false, budget, t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer original.close()
		if err := s.keepHidden(budget, t.TempDir()); err != nil {
			t.Fatal(err)
		}
		got := [4]bool{s.x.Spilled(), s.carry.Spilled(), original.x.Spilled(), s.hidden.Spilled()}
		if got != c.inFile {
			t.Errorf("budget %d: in files %v, want %v", c.budget, got, c.inFile)
		}
		if disk := plan.Needs(m, seqs*seqLen, seqLen, c.budget).Disk - plan.File.Size(); disk != c.inFiles {
			t.Errorf("budget %d: %d bytes in files, want %d", c.budget, disk, c.inFiles)
		}
	}
}
