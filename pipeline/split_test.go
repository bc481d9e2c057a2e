package pipeline

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
)

// TestSplit: a split file holds what one file would, and is validated before it takes its names.
func TestSplit(t *testing.T) {
	src, set, held := validated(t)
	recipe := Recipe{Method: GPTQ, Type: ggml.Q4_0}
	opt := Options{Calib: set, Validate: Validate{Tokens: held}}
	onePath, one := mustRun(t, src, recipe, opt)
	recipe.PartBytes = 20_000
	path, split := mustRun(t, src, recipe, opt)
	if _, err := os.Stat(path); err == nil || len(split.Parts) < 3 || split.Output != split.Parts[0] || len(one.Parts) != 0 {
		t.Errorf("output %s, parts %q; of one file %q", split.Output, split.Parts, one.Parts)
	}
	if files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(files) != len(split.Parts) {
		t.Errorf("the folder holds %q, want %q", files, split.Parts)
	}
	if a, b := one.Validation, split.Validation; a.Quantized != b.Quantized || a.KL != b.KL {
		t.Errorf("validated %+v, one file %+v", b, a)
	}
	a, b := open(t, onePath), open(t, split.Output)
	if len(a.Tensors()) != len(b.Tensors()) || split.Bytes != b.Size() {
		t.Fatalf("%d tensors, want %d; %d bytes reported, %d there", len(b.Tensors()), len(a.Tensors()), split.Bytes, b.Size())
	}
	if !reflect.DeepEqual(a.Metadata(), b.Metadata()) {
		t.Error("the metadata differ")
	}
	for _, info := range a.Tensors() {
		x, errX := a.Tensor(info.Name)
		y, errY := b.Tensor(info.Name)
		if errX != nil || errY != nil || !bytes.Equal(x.Data, y.Data) {
			t.Errorf("%s differs: %v, %v", info.Name, errX, errY)
		}
	}
}

// TestSplitBudget: a budget counts all parts, whatever types fill them.
func TestSplitBudget(t *testing.T) {
	tm := testmodel.New("llama-linear")
	src := tm.Source()
	opt := Options{Calib: fewSequences(tm)}
	for _, partBytes := range []int64{1, 5_000, 20_000} {
		p, err := NewPlan(src, Recipe{Method: RTN, Type: ggml.Q8_0, PartBytes: partBytes})
		if err != nil {
			t.Fatal(err)
		}
		budget := p.File.Size() * 3 / 4
		if p, err = Assign(t.Context(), src, p, Budget{MaxBytes: budget}, t.TempDir(), opt); err != nil {
			t.Fatal(err)
		}
		if size := p.File.Size(); size > budget || size < budget*9/10 {
			t.Errorf("parts of %d bytes: %d bytes in all, %d are allowed", partBytes, size, budget)
		}
	}
}

// TestAssignRequantized: weights that the first probe holds as they are matter nevertheless.
func TestAssignRequantized(t *testing.T) {
	tm := testmodel.New("llama-linear")
	opt := Options{Calib: fewSequences(tm)}
	path, _ := mustRun(t, tm.Source(), Recipe{Method: RTN, Type: ggml.Q4_0, Embedding: ggml.Q4_0, Output: ggml.Q4_0}, Options{})
	p := assigned(t, open(t, path), Recipe{Method: RTN, Type: ggml.Q4_0, Requantize: true}, Budget{MaxBPW: 6}, opt)
	if len(p.Assignment.Tensors) < 10 {
		t.Fatalf("%d tensors were assigned", len(p.Assignment.Tensors))
	}
	for _, a := range p.Assignment.Tensors {
		if !(a.Sensitivity > 0) {
			t.Errorf("%s: sensitivity %v", a.Name, a.Sensitivity)
		}
		if a.Type == "Q4_0" && a.PredictedKL != 0 {
			t.Errorf("%s keeps its type, and is to cost %g", a.Name, a.PredictedKL)
		}
	}
}
