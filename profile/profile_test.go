package profile_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/profile"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

const seqLen = 16

func testSet(tm *testmodel.Model, sequences int) *calib.Set {
	set := &calib.Set{SeqLen: seqLen, Sources: []calib.Source{{Path: "random", Sequences: sequences}}}
	for i := range sequences {
		set.Sequences = append(set.Sequences, tm.Tokens(seqLen, uint64(100+i)))
	}
	return set
}

func run(t *testing.T, src model.Source, set *calib.Set, opt profile.Options) *profile.Profile {
	t.Helper()
	p, err := profile.Run(t.Context(), src, set, opt)
	if err != nil {
		t.Fatal(err)
	}
	p.Seconds = 0
	return p
}

// TestMeasurements compares a profile with a forward pass of the test model's own, in float64.
func TestMeasurements(t *testing.T) {
	tm := testmodel.New("qwen3")
	set := testSet(tm, 6)
	src := tm.Source()
	p := run(t, src, set, profile.Options{Type: ggml.Q4_0})
	if len(p.Inputs) != 4*p.Layers || len(p.Linears) != 7*p.Layers || p.Type != "Q4_0" || p.Calibration.SHA256 != set.SHA256() {
		t.Fatalf("%d inputs, %d linears, type %s", len(p.Inputs), len(p.Linears), p.Type)
	}
	// The first layer's first input is the embeddings, normalised.
	embed, norm := src.Find("token_embd.weight"), src.Find("blk.0.attn_norm.weight")
	dim := embed.Cols()
	weights := make([]float32, dim)
	norm.Type.Decode(weights, norm.Data)
	absMax, sumAbs, h := make([]float64, dim), 0.0, tensor.New(dim, dim)
	row := make([]float32, dim)
	for _, seq := range set.Sequences {
		for _, id := range seq {
			embed.Type.Decode(row, embed.Data[2*dim*int(id):2*dim*(int(id)+1)])
			square := 0.0
			for _, v := range row {
				square += float64(v) * float64(v) / float64(dim)
			}
			x := make([]float64, dim)
			for j, v := range row {
				x[j] = float64(v) / math.Sqrt(square+tm.Config.RMSNormEps) * float64(weights[j])
				absMax[j] = max(absMax[j], math.Abs(x[j]))
				sumAbs += math.Abs(x[j]) / float64(dim*6*seqLen)
			}
			for i := range x {
				for j := range x {
					h.Row(i)[j] += float32(x[i] * x[j])
				}
			}
		}
	}
	in := &p.Inputs[0]
	near(t, "mean magnitude", in.MeanAbs, sumAbs, 1e-5)
	near(t, "largest magnitude", in.FeatureRange.Max, slices.Max(absMax), 1e-5)
	near(t, "clip", in.Clip.MinMax, slices.Max(absMax), 1e-5)
	if f := in.LargestFeatures[0]; math.Abs(absMax[f.Index]-slices.Max(absMax)) > 1e-5 || in.Name != "blk.0.attn_in" {
		t.Errorf("%s: feature %d is said to be the largest", in.Name, f.Index)
	}
	// The error of rounding with the importance of the inputs.
	wt := src.Find("blk.0.attn_q.weight")
	w := tensor.New(wt.Rows(), wt.Cols())
	wt.Type.Decode(w.Data, wt.Data)
	importance := make([]float32, dim)
	for j := range importance {
		importance[j] = h.Row(j)[j] / (6 * seqLen)
	}
	q := tensor.New(w.Rows, w.Cols)
	data := make([]byte, ggml.Q4_0.RowBytes(w.Cols))
	for i := range w.Rows {
		ggml.Q4_0.Encode(data, w.Row(i), importance)
		ggml.Q4_0.Decode(q.Row(i), data)
	}
	lin := &p.Linears[0]
	near(t, "output error", lin.OutputError, quant.OutputError(w, q, h), 1e-3)
	near(t, "weight error", lin.WeightError, quant.WeightError(w, q), 1e-3)
	if lin.Name != "blk.0.attn_q.weight" || lin.Input != in.Name || lin.In != dim || lin.Type != "Q4_0" {
		t.Errorf("%+v", lin)
	}
	// ffn_down's input is followed by nothing but ffn_down: the error is its own, but for the rounding of the Hessian.
	near(t, "unsmoothed error", p.Inputs[3].Smoothing.Plain, p.Linears[6].OutputError, 1e-2)
	b, err := json.Marshal(p)
	if err != nil || strings.Contains(string(b), "null,\"outlier") {
		t.Errorf("%v: %s", err, b)
	}
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance*math.Abs(want)) {
		t.Errorf("%s: %.9g, want %.9g", what, got, want)
	}
}

// TestDivergence: the linears with the largest errors are those that are measured, each as eval measures it.
func TestDivergence(t *testing.T) {
	tm := testmodel.New("llama-linear")
	held := tm.Tokens(60, 5)
	opt := profile.Options{Type: ggml.Q4_0, HeldOut: held, KLLinears: 3, Eval: eval.Options{Context: 20}}
	p := run(t, tm.Source(), testSet(tm, 6), opt)
	var measured, other []float64
	for _, l := range p.Linears {
		if l.KL != nil {
			measured = append(measured, l.OutputError)
			if !(l.KL.Mean > 0 && l.KL.StdErr > 0) {
				t.Errorf("%s: KL %+v", l.Name, l.KL)
			}
		} else {
			other = append(other, l.OutputError)
		}
	}
	if len(measured) != 3 || slices.Min(measured) < slices.Max(other) {
		t.Errorf("errors %v are measured, %v are not", measured, other)
	}
	opt.KLLinears = -1
	all := run(t, tm.Source(), testSet(tm, 6), opt)
	for i := range p.Linears {
		if all.Linears[i].KL == nil {
			t.Fatalf("%s has no KL divergence", all.Linears[i].Name)
		}
		if kl := p.Linears[i].KL; kl != nil {
			near(t, p.Linears[i].Name, all.Linears[i].KL.Mean, kl.Mean, 1e-9)
		}
	}
}

// check returns the checklist's entry whose question has a word.
func check(t *testing.T, p *profile.Profile, word string) profile.Check {
	t.Helper()
	for _, c := range p.Checklist {
		if strings.Contains(c.Question, word) {
			if c.OK != (c.Advice == "") || c.Evidence == "" {
				t.Errorf("%+v", c)
			}
			return c
		}
	}
	t.Fatalf("no question about %q in %+v", word, p.Checklist)
	return profile.Check{}
}

// plant multiplies channels of a layer's norm by 64 and divides the following weights' columns by as much: the function
// stays the same, and the input has outlier features.
func plant(src *testmodel.Source, norm string, linears []string, channels []int) {
	n := src.Find(norm)
	v := make([]float32, n.Elements())
	n.Type.Decode(v, n.Data)
	for _, c := range channels {
		v[c] *= 64
	}
	tensor.EncodeF32(n.Data, v)
	for _, name := range linears {
		w := src.Find(name)
		m := make([]float32, w.Elements())
		w.Type.Decode(m, w.Data)
		for r := range w.Rows() {
			for _, c := range channels {
				m[r*w.Cols()+c] /= 64
			}
		}
		tensor.EncodeBF16(w.Data, m)
	}
}

// TestOutliers plants outlier features, which a profile must find, and smooth.
func TestOutliers(t *testing.T) {
	tm := testmodel.New("llama")
	set := testSet(tm, 8)
	clean := run(t, tm.Source(), set, profile.Options{Type: ggml.Q4_0})
	if c := check(t, clean, "outlier"); !c.OK {
		t.Errorf("the clean model: %+v", c)
	}
	src := tm.Source()
	channels := []int{7, 100, 250}
	for _, layer := range []string{"blk.0.", "blk.1."} {
		plant(src, layer+"attn_norm.weight", []string{layer + "attn_q.weight", layer + "attn_k.weight", layer + "attn_v.weight"}, channels)
	}
	p := run(t, src, set, profile.Options{Type: ggml.Q4_0})
	for _, i := range []int{0, 4} {
		in, was := &p.Inputs[i], &clean.Inputs[i]
		if !slices.Equal(in.OutlierFeatures, channels) || !slices.Contains(channels, in.LargestFeatures[0].Index) {
			t.Errorf("%s: outliers %v, largest %v", in.Name, in.OutlierFeatures, in.LargestFeatures[0])
		}
		if in.Kurtosis < 5*was.Kurtosis || in.FeatureRange.Max < 10*was.FeatureRange.Max {
			t.Errorf("%s: kurtosis %g, largest %g; without outliers %g, %g", in.Name, in.Kurtosis, in.FeatureRange.Max, was.Kurtosis, was.FeatureRange.Max)
		}
		a := in.Smoothing.Alpha
		if a == nil {
			t.Fatalf("%s: no α helps: %+v", in.Name, in.Smoothing)
		}
		if e := in.Smoothing.Best; e > 0.5*in.Smoothing.Plain || e > 1.3*was.Smoothing.Plain {
			t.Errorf("%s: α %g leaves %g of %g; without outliers %g", in.Name, *a, e, in.Smoothing.Plain, was.Smoothing.Plain)
		}
	}
	if c := check(t, p, "outlier"); c.OK || !strings.Contains(c.Evidence, "blk.0.attn_in (3, up to") {
		t.Errorf("%+v", c)
	}
	if c := check(t, p, "smoothing"); c.OK || !strings.Contains(c.Evidence, "blk.1.attn_in (α ") {
		t.Errorf("%+v", c)
	}
	// A limit between the planted linears' errors and the others' lists just those.
	limit := 2 * clean.Linears[0].OutputError
	p = run(t, src, set, profile.Options{Type: ggml.Q4_0, FallbackError: limit})
	var listed, want []string
	for _, f := range p.Fallback {
		listed = append(listed, f.Linear)
	}
	for _, l := range p.Linears {
		if l.OutputError > limit {
			want = append(want, l.Name)
		}
	}
	if !slices.Equal(listed, want) || !slices.Contains(listed, "blk.1.attn_k.weight") || check(t, p, "rounding").OK {
		t.Errorf("fallback %v, want %v; %+v", p.Fallback, want, check(t, p, "rounding"))
	}
}

func TestChecklist(t *testing.T) {
	tm := testmodel.New("qwen2")
	set := testSet(tm, 6)
	set.Warnings = []string{"calibration: something"}
	p := run(t, tm.Source(), set, profile.Options{Type: ggml.Q4_K, FallbackError: 1e-9})
	if c := check(t, p, "enough"); c.OK || !strings.Contains(c.Evidence, "something") {
		t.Errorf("%+v", c)
	}
	if c := check(t, p, "settle"); c.OK { // not on six sequences
		t.Errorf("%+v", c)
	}
	if c := check(t, p, "columns"); c.OK || !strings.Contains(c.Evidence, "blk.0.attn_q.weight (64 columns: Q5_0)") ||
		!strings.Contains(c.Evidence, "and 8 more") {
		t.Errorf("%+v", c)
	}
	quantized := 0
	for _, l := range p.Linears {
		if l.OutputError > 1e-9 {
			quantized++
		}
	}
	if len(p.Fallback) != quantized || quantized < 8 || !strings.Contains(p.Fallback[0].Reason, "exceeds the limit of 1e-09") {
		t.Errorf("%d linears of %d listed: %+v", len(p.Fallback), quantized, p.Fallback)
	}
	long := testSet(tm, 800)
	if c := check(t, run(t, tm.Source(), long, profile.Options{Type: ggml.Q8_0}), "settle"); !c.OK {
		t.Errorf("%+v", c)
	}
}

// TestSame: neither threads nor memory change a profile.
func TestSame(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	tm := testmodel.New("mistral")
	held := tm.Tokens(40, 5)
	opt := profile.Options{Type: ggml.Q4_0, HeldOut: held, KLLinears: 2, Eval: eval.Options{Context: 20}}
	var first *profile.Profile
	for threads := 1; threads <= 3; threads++ {
		runtime.GOMAXPROCS(threads)
		opt.Memory, opt.TempDir = int64(threads%2), t.TempDir()
		p := run(t, tm.Source(), testSet(tm, 5), opt)
		if first == nil {
			first = p
		}
		if !reflect.DeepEqual(p, first) {
			t.Errorf("%d threads: another profile", threads)
		}
	}
}

func TestErrors(t *testing.T) {
	tm := testmodel.New("qwen2")
	bad := tm.Source()
	up := bad.Find("blk.1.ffn_up.weight")
	up.Data[0], up.Data[1] = 0x80, 0x7f // infinity
	quantized := tm.Source()
	q := quantized.Find("blk.0.attn_q.weight")
	data := make([]byte, 0)
	row := make([]float32, q.Cols())
	for range q.Rows() {
		data = append(data, make([]byte, ggml.Q8_0.RowBytes(len(row)))...)
	}
	q.Type, q.Data = ggml.Q8_0, data
	far := testSet(tm, 2)
	far.Sequences[1][3] = 100000
	for _, c := range []struct {
		src  model.Source
		set  *calib.Set
		opt  profile.Options
		want string
	}{
		{bad, testSet(tm, 2), profile.Options{Type: ggml.Q4_0}, "layer 1: "},
		{quantized, testSet(tm, 2), profile.Options{Type: ggml.Q4_0}, `tensor "blk.0.attn_q.weight" is Q8_0, already quantized`},
		{tm.Source(), far, profile.Options{Type: ggml.Q4_0}, "token 3 is 100000"},
		{tm.Source(), testSet(tm, 2), profile.Options{Type: ggml.Q4_0, Memory: 1, TempDir: "/nonexistent"}, "hidden states"},
		{tm.Source(), testSet(tm, 2), profile.Options{Type: ggml.Q4_0, HeldOut: tm.Tokens(9, 1), KLLinears: 1}, "the text has 9 tokens"},
	} {
		if _, err := profile.Run(context.Background(), c.src, c.set, c.opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := profile.Run(ctx, tm.Source(), testSet(tm, 2), profile.Options{Type: ggml.Q4_0}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
}
