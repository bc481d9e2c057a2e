package pipeline

import (
	"context"
	"math"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// TestInt8 checks the stored scales against the inputs of the model in the file, and that they serve.
func TestInt8(t *testing.T) {
	tm := testmodel.New("llama")
	set := testSet(tm)
	set.Sequences = set.Sequences[:8]
	path, rep := mustRun(t, tm.Source(), Recipe{Method: Int8, Type: ggml.Q8_0}, Options{Calib: set})
	f := open(t, path)
	m, err := arch.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	v, _ := f.Meta(model.StaticLinearsKey)
	linears, _ := v.([]string)
	v, _ = f.Meta(model.StaticScalesKey)
	scales, _ := v.([]float32)
	if want := 7 * m.Layers(); len(linears) != want || len(scales) != want {
		t.Fatalf("%d linears and %d scales, want %d", len(linears), len(scales), want)
	}
	byName := map[string]float32{}
	for i, name := range linears {
		byName[name] = scales[i]
	}
	x := tensor.New(len(set.Sequences)*set.SeqLen, m.Dim)
	for i, s := range set.Sequences {
		if err := m.Embed(x.View(i*set.SeqLen, (i+1)*set.SeqLen, 0, m.Dim), s, set.SeqLen, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			t.Fatal(err)
		}
		for _, lin := range l.Linears() {
			lin.MatMul = func(dst, x *tensor.Matrix) {
				var absmax float64
				for r := range x.Rows {
					for _, v := range x.Row(r) {
						absmax = max(absmax, math.Abs(float64(v)))
					}
				}
				if got := 127 * float64(byName[lin.Name]); math.Abs(got/absmax-1) > 0.02 {
					t.Errorf("%s: the scale reaches %v, the inputs %v", lin.Name, got, absmax)
				}
				gemm.MatMul(dst, x, &lin.W, kernels.F32)
			}
		}
		if err := l.Forward(t.Context(), m.NewState(), x, set.SeqLen); err != nil {
			t.Fatal(err)
		}
		l.Release()
	}
	for _, r := range rep.Tensors {
		if strings.HasSuffix(r.Name, "ffn_down.weight") && (r.RelativeError <= 0 || r.RelativeError > 1e-3) {
			t.Errorf("%s: relative error %v", r.Name, r.RelativeError)
		}
	}
	for _, r := range rep.Tensors {
		// Rounding to nearest with searched scales is somewhat below the estimate.
		if ratio := r.WeightError / r.ExpectedError; r.Type == "Q8_0" && (ratio < 0.5 || ratio > 1.1) ||
			r.Type == "F16" && r.ExpectedError != 0 || r.Type == "F32" && r.WeightError != 0 {
			t.Errorf("%s, %s: weight error %v, expected %v", r.Name, r.Type, r.WeightError, r.ExpectedError)
		}
	}
	base, err := arch.Open(tm.Source())
	if err != nil {
		t.Fatal(err)
	}
	res, err := eval.Perplexity(t.Context(), m, tm.Tokens(128, 99), eval.Options{Context: 64, Activations: eval.Int8Static, Base: base})
	if err != nil {
		t.Fatal(err)
	}
	if res.KL < 1e-8 || res.KL > 0.05 {
		t.Errorf("KL divergence of static INT8 is %v", res.KL)
	}
}

func TestInt8Errors(t *testing.T) {
	src := testmodel.New("llama").Source()
	if _, err := NewPlan(src, Recipe{Method: Int8, Type: ggml.Q4_0}); err == nil ||
		!strings.Contains(err.Error(), "method int8 has Q8_0 weights, not Q4_0") {
		t.Errorf("error %v", err)
	}
	p, err := NewPlan(src, Recipe{Method: Int8, Type: ggml.Q8_0})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Run(context.Background(), src, p, t.TempDir()+"/x.gguf", Options{})
	if err == nil || !strings.Contains(err.Error(), "int8 needs calibration text") {
		t.Errorf("error %v", err)
	}
}
