package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/awq"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/quant/fit"
	"github.com/llmq/llmq/smoothquant"
	"github.com/llmq/llmq/tensor"
)

// sequences returns calibration sequences for a test model.
func sequences(tm *testmodel.Model, seqs, seqLen int) *calib.Set {
	set := &calib.Set{SeqLen: seqLen}
	for i := range seqs {
		set.Sequences = append(set.Sequences, tm.Tokens(seqLen, uint64(i)))
	}
	return set
}

func openModel(t *testing.T, src model.Source) *model.Model {
	t.Helper()
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = kernels.F32
	return m
}

// forward runs a model on one sequence; change may replace what each layer computes with, and sees its input x.
func forward(t *testing.T, m *model.Model, tokens []int32, change func(l *model.Layer, x *tensor.Matrix)) *tensor.Matrix {
	t.Helper()
	x := tensor.New(len(tokens), m.Dim)
	if err := m.Embed(x, tokens, len(tokens), nil); err != nil {
		t.Fatal(err)
	}
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(l, x)
		}
		if err := l.Forward(context.Background(), m.NewState(), x, len(tokens)); err != nil {
			t.Fatal(err)
		}
		l.Release()
	}
	h, err := m.LoadHead()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	y := tensor.New(len(tokens), m.Vocab)
	h.Logits(y, x)
	return y
}

// relative returns the largest difference over the largest magnitude.
func relative(got, want *tensor.Matrix) float64 {
	var diff, largest float64
	for i, v := range want.Data {
		diff = max(diff, math.Abs(float64(got.Data[i]-v)))
		largest = max(largest, math.Abs(float64(v)))
	}
	return diff / largest
}

// spread is a transform that folds scales over three decades, whatever it is given.
type spread struct{}

func (spread) Transform(_ context.Context, g *quant.Group) (*quant.Folding, error) {
	s := make([]float32, len(g.In.MeanAbs()))
	for j := range s {
		s[j] = float32(math.Pow(10, 3*float64(j*7%11)/10-1.5))
	}
	g.Prev.Share(s)
	return &quant.Folding{Scale: s}, nil
}

// TestFolding folds scales of every kind into every architecture without rounding: the logits stay, in the layer that is
// to be quantized and in the original one beside it.
func TestFolding(t *testing.T) {
	t.Parallel()
	const tolerance = 1e-4
	names := testmodel.Names()
	if testing.Short() {
		names = names[:2]
	}
	for _, name := range names {
		tm := testmodel.New(name)
		m := openModel(t, tm.Source())
		tokens := tm.Tokens(12, 99)
		want := forward(t, m, tokens, nil)
		for _, ts := range [][]quant.Transform{
			{spread{}}, {smoothquant.Smoothing{Alpha: 0.5}}, {awq.Scaling{}}, {smoothquant.Smoothing{Auto: true}, awq.Scaling{}},
		} {
			plan, err := NewPlan(tm.Source(), Recipe{Method: RTN, Type: ggml.Q4_0})
			if err != nil {
				t.Fatal(err)
			}
			r := &transformer{task: &task{ctx: t.Context(), m: m, plan: plan, opt: Options{Calib: sequences(tm, 3, 12)}}}
			s, err := newStream(m, r.opt.Calib.Sequences, 12, true, newStateBudget(0), "", nil)
			if err != nil {
				t.Fatal(err)
			}
			changed := false
			got := forward(t, m, tokens, func(l *model.Layer, _ *tensor.Matrix) {
				ol, err := m.LoadLayer(l.Index)
				if err != nil {
					t.Fatal(err)
				}
				norm := fmt.Sprintf("blk.%d.ffn_norm.weight", l.Index)
				before := slices.Clone(l.Vectors()[norm])
				if err := r.transformWith(ts, s, l, ol); err != nil {
					t.Fatal(err)
				}
				changed = changed || !slices.Equal(before, l.Vectors()[norm])
				for i, lin := range ol.Linears() {
					a, err := lin.Matrix()
					if err != nil {
						t.Fatal(err)
					}
					b, err := l.Linears()[i].Matrix()
					if err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(a.Data, b.Data) {
						t.Errorf("%s: %s differs in the original model", name, lin.Name)
					}
				}
				for vector, v := range ol.Vectors() {
					if !slices.Equal(v, l.Vectors()[vector]) {
						t.Errorf("%s: %s differs in the original model", name, vector)
					}
				}
			})
			if e := relative(got, want); !(e <= tolerance) {
				t.Errorf("%s, %T: logits differ by %.2g, want at most %g", name, ts[0], e, tolerance)
			}
			for _, f := range r.foldings {
				if f.After > f.Before && f.Transform == "awq" {
					t.Errorf("%s: %+v", name, f)
				}
			}
			if !changed && !slices.ContainsFunc(r.foldings, func(f quant.Folding) bool { return f.Skipped != "" }) {
				t.Errorf("%s, %T: nothing was folded", name, ts[0])
			}
			if err := s.close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// quantized runs a recipe and opens the result.
func quantized(t *testing.T, src Source, set *calib.Set, r Recipe) (*model.Model, *Report) {
	t.Helper()
	plan, err := NewPlan(src, r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out.gguf")
	rep, err := Run(t.Context(), src, plan, path, Options{Calib: set})
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return openModel(t, f), rep
}

// outputError returns ‖got−want‖²/‖want‖² of the logits of some sequences.
func outputError(t *testing.T, tm *testmodel.Model, got, want *model.Model) float64 {
	t.Helper()
	var num, den float64
	for seed := range uint64(4) {
		tokens := tm.Tokens(32, 1000+seed)
		a, b := forward(t, got, tokens, nil), forward(t, want, tokens, nil)
		for i, v := range b.Data {
			d := float64(a.Data[i]) - float64(v)
			num += d * d
			den += float64(v) * float64(v)
		}
	}
	return num / den
}

// TestPlanted plants outlier features in a small model. Rounding to nearest loses by them; each way of scaling makes up
// for it, and what is written (weights, norms and biases) is the scaled model.
func TestPlanted(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("quantizes small models many times")
	}
	for _, name := range []string{"llama", "qwen2-yarn", "qwen3"} {
		tm := testmodel.New(name)
		src, err := testmodel.Plant(tm.Source(), testmodel.Outliers{Channels: 4, Factor: 50})
		if err != nil {
			t.Fatal(err)
		}
		want := openModel(t, tm.Source())
		if e := relative(forward(t, openModel(t, src), tm.Tokens(20, 5), nil), forward(t, want, tm.Tokens(20, 5), nil)); e > 1e-4 {
			t.Fatalf("%s: planting changes the logits by %.2g", name, e)
		}
		set := sequences(tm, 16, 32)
		measure := func(s Source, r Recipe) float64 {
			r.Type = ggml.Q4_0
			m, rep := quantized(t, s, set, r)
			if n := len(rep.Foldings); n != 4*m.Layers()*len(r.transforms()) {
				t.Errorf("%s: %d foldings reported for %d layers", name, n, m.Layers())
			}
			for _, f := range rep.Foldings {
				if f.Transform == "awq" && f.After > f.Before {
					t.Errorf("%s: %s: %+v", name, r.Method.Name(), f)
				}
			}
			return outputError(t, tm, m, want)
		}
		clean := measure(tm.Source(), Recipe{Method: RTN})
		planted := measure(src, Recipe{Method: RTN})
		if planted < 1.5*clean {
			t.Errorf("%s: planted outliers cost only %.3g, the clean model %.3g", name, planted, clean)
		}
		recipes := []Recipe{
			{Method: AWQGPTQ},
			{Method: AWQ, Smooth: &smoothquant.Smoothing{Auto: true}},
			{Method: RTN, Smooth: &smoothquant.Smoothing{Alpha: 0.5}},
			{Method: RTN, Smooth: &smoothquant.Smoothing{Auto: true}},
			{Method: AWQ},
		}
		if name != "qwen2-yarn" { // the smallest has all, of the others those in which everything takes part
			recipes = recipes[:2]
		}
		for _, r := range recipes {
			if e := measure(src, r); e > 1.2*clean {
				t.Errorf("%s: %s, smooth %v: %.3g, rounding the clean model to nearest %.3g", name, r.Method.Name(), r.Smooth, e, clean)
			}
		}
	}
}

// TestUnscaled: where AWQ's scales are not worth it, awq+gptq writes the weights that gptq does.
func TestUnscaled(t *testing.T) {
	tm := testmodel.New("qwen3")
	opt := Options{Calib: sequences(tm, 16, 32)}
	plain, _ := mustRun(t, tm.Source(), Recipe{Method: GPTQ, Type: ggml.Q4_0}, opt)
	tried, rep := mustRun(t, tm.Source(), Recipe{Method: AWQGPTQ, Type: ggml.Q4_0}, opt)
	for _, f := range rep.Foldings {
		if f.Skipped == "" {
			t.Fatalf("%+v", f)
		}
	}
	a, b := open(t, plain), open(t, tried)
	for _, info := range a.Tensors() {
		x, err := a.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		y, err := b.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(x.Data, y.Data) {
			t.Errorf("%s differs", info.Name)
		}
	}
}

// TestSkipped: groups that are not scaled are listed with the reason.
func TestSkipped(t *testing.T) {
	tm := testmodel.New("llama")
	rule, err := ParseRule("ffn_down=f16")
	if err != nil {
		t.Fatal(err)
	}
	_, rep := quantized(t, tm.Source(), sequences(tm, 4, 16), Recipe{Method: AWQ, Type: ggml.Q4_0, Rules: []Rule{rule}})
	skipped := 0
	for _, f := range rep.Foldings {
		if f.Skipped == "" {
			continue
		}
		skipped++
		if !strings.HasSuffix(f.Group, ".mlp_out") || !strings.Contains(f.Skipped, "quantized") {
			t.Errorf("%+v", f)
		}
	}
	if skipped != 2 {
		t.Errorf("%d groups skipped, want one for each of 2 layers", skipped)
	}
}

// meanOutputs returns the mean over all tokens of each layer's input, and of the outputs of q, k and gate, which
// folding leaves as they are.
func meanOutputs(t *testing.T, m *model.Model, set *calib.Set) [][]float64 {
	t.Helper()
	var means [][]float64
	for _, tokens := range set.Sequences {
		n := 0
		mean := func(y *tensor.Matrix) {
			if n == len(means) {
				means = append(means, make([]float64, y.Cols))
			}
			for i := range y.Rows {
				for j, v := range y.Row(i) {
					means[n][j] += float64(v) / float64(y.Rows*len(set.Sequences))
				}
			}
			n++
		}
		forward(t, m, tokens, func(l *model.Layer, x *tensor.Matrix) {
			mean(x)
			st := m.NewState()
			st.Enter(m, x.Clone(), x.Rows)
			err := l.Run(t.Context(), st, 0, len(l.Stages), func(s *model.Site, h *tensor.Matrix, _ []int) error {
				count := map[string]int{"attn_in": 2, "mlp_in": 1}[s.Name] // q and k, gate
				for _, lin := range s.Linears[:count] {
					y := tensor.New(x.Rows, lin.Out)
					lin.Apply(y, h, m.Precision)
					mean(y)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	return means
}

// TestBiasCorrection: rounding shifts the means of outputs; corrected biases, old and new, make those of the linears
// that have them what they were.
func TestBiasCorrection(t *testing.T) {
	t.Parallel()
	names := []string{"llama", "qwen2-yarn"}
	if testing.Short() {
		names = names[1:]
	}
	for _, name := range names {
		tm := testmodel.New(name)
		set := sequences(tm, 8, 32)
		original := openModel(t, tm.Source())
		original.Precision = 0
		want := meanOutputs(t, original, set)
		shift := func(r Recipe) (shifts []float64, m *model.Model, rep *Report) {
			r.Type = ggml.Q4_0
			m, rep = quantized(t, tm.Source(), set, r)
			m.Precision = original.Precision
			for i, got := range meanOutputs(t, m, set) {
				var d float64
				for j, v := range got {
					d += (v - want[i][j]) * (v - want[i][j])
				}
				shifts = append(shifts, d)
			}
			return shifts, m, rep
		}
		for _, r := range []Recipe{{Method: RTN}, {Method: GPTQ}, {Method: AWQ, Smooth: &smoothquant.Smoothing{Alpha: 0.5}}} {
			before, _, _ := shift(r)
			r.BiasCorrection = true
			after, m, rep := shift(r)
			for i := range before {
				// In the order of meanOutputs. Only llama's readers load biases of the MLP.
				corrected := name == "llama" || i%4 == 1 || i%4 == 2
				if corrected && i > 0 && after[i] > 0.03*before[i] { // products are of bfloat16
					t.Errorf("%s, %s: output %d: shift of the mean %.3g, without correction %.3g", name, r.Method.Name(), i, after[i], before[i])
				}
			}
			l, err := m.LoadLayer(0)
			if err != nil {
				t.Fatal(err)
			}
			for _, lin := range l.Linears() {
				if lin.Bias == nil != slices.Contains(rep.NoBias, lin.Name) {
					t.Errorf("%s: %s: bias %v, listed as without: %v", name, lin.Name, lin.Bias != nil, rep.NoBias)
				}
			}
		}
	}
}

func TestTransformErrors(t *testing.T) {
	tm := testmodel.New("qwen3")
	rules := func(ss ...string) (rs []Rule) {
		for _, s := range ss {
			r, err := ParseRule(s)
			if err != nil {
				t.Fatal(err)
			}
			rs = append(rs, r)
		}
		return rs
	}
	for _, c := range []struct {
		recipe Recipe
		want   string
	}{
		{Recipe{Method: AWQ}, "awq needs calibration text"},
		{Recipe{Method: RTN, Smooth: &smoothquant.Smoothing{Auto: true}}, "smoothing needs calibration text"},
		{Recipe{Method: RTN, BiasCorrection: true}, "bias correction needs calibration text"},
		{Recipe{Method: RTN, Smooth: &smoothquant.Smoothing{Alpha: 1.5}}, "alpha 1.5: want 0 to 1"},
		{Recipe{Method: RTN, Smooth: &smoothquant.Smoothing{Alpha: math.NaN()}}, "alpha NaN"},
		{Recipe{Method: RTN, BiasCorrection: true, Rules: rules("attn=f16")}, `load no bias for any quantized linear of architecture "qwen3"`},
	} {
		c.recipe.Type = ggml.Q4_0
		plan, err := NewPlan(tm.Source(), c.recipe)
		if err == nil {
			_, err = Run(t.Context(), tm.Source(), plan, filepath.Join(t.TempDir(), "out.gguf"), Options{})
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want %q", c.recipe, err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g := &quant.Group{Prev: &quant.Scaler{Norm: []float32{1}}, In: quant.NewInputs(1), Sample: tensor.New(1, 1),
		Linears: []*quant.Linear{{W: tensor.New(1, 1)}}}
	g.Linears[0].Grid = fit.New(quant.Affine{Block: 1, Group: 1, CodeMin: -1, CodeMax: 1})
	for _, tr := range []quant.Transform{awq.Scaling{}, smoothquant.Smoothing{Auto: true}} {
		if _, err := tr.Transform(ctx, g); !errors.Is(err, context.Canceled) {
			t.Errorf("%T: error %v after cancelling", tr, err)
		}
	}
}

// TestInputsOverflow: every method says so when hidden states are beyond float32, and writes nothing.
func TestInputsOverflow(t *testing.T) {
	tm := testmodel.New("qwen3")
	src := tm.Source()
	norm := src.Find("blk.1.attn_norm.weight")
	for i := range norm.Cols() {
		tensor.EncodeF32(norm.Data[4*i:], []float32{math.MaxFloat32})
	}
	for _, m := range Methods {
		r := Recipe{Method: m, Type: ggml.Q4_0}
		if m == Int8 {
			r.Type = ggml.Q8_0
		}
		plan, err := NewPlan(src, r)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		_, err = Run(t.Context(), src, plan, filepath.Join(dir, "out.gguf"), Options{Calib: sequences(tm, 4, 32)})
		if err == nil || !strings.HasPrefix(err.Error(), "layer 1: ") || !strings.Contains(err.Error(), "overflow float32") {
			t.Errorf("%s: %v", m.Name(), err)
		}
		if files, _ := os.ReadDir(dir); len(files) > 0 {
			t.Errorf("%s: left %s", m.Name(), files[0].Name())
		}
	}
}
