package pipeline

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
)

// TestOriginalBlocks: what a checkpoint's authors quantized themselves needs no permission, and keeps its codes where the
// others become floats: byte for byte those of llama.cpp's converter.
func TestOriginalBlocks(t *testing.T) {
	dir := filepath.Join(shared.Path(t, "archs"), "gpt-oss-mxfp4")
	src, err := hf.Open(dir, hf.Options{Pre: "gpt-4o"})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	plan, err := NewPlan(src, Recipe{Method: RTN, Type: ggml.F32})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out.gguf")
	rep, err := Run(t.Context(), src, plan, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rep.Tensors {
		if r.RelativeError != 0 || r.RequantizedFrom != "" {
			t.Errorf("%s: relative error %g, requantized from %q", r.Name, r.RelativeError, r.RequantizedFrom)
		}
	}
	got, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	want, err := gguf.Open(filepath.Join(dir, "expected.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	kept := 0
	for _, info := range want.Tensors() {
		if info.Type != ggml.MXFP4 {
			continue
		}
		a, err := got.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := want.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		if kept++; a.Type != ggml.MXFP4 || !bytes.Equal(a.Data, b.Data) {
			t.Errorf("%s: %s with other codes", info.Name, a.Type.Name)
		}
	}
	if kept == 0 {
		t.Error("llama.cpp keeps no tensor in MXFP4")
	}
	// A rule says otherwise; a file is not an original.
	plan, err = NewPlan(src, Recipe{Method: RTN, Type: ggml.Q8_0})
	if err != nil || plan.Lookup("blk.0.ffn_gate_exps.weight").Type != ggml.Q8_0 {
		t.Errorf("Q8_0 was asked for; %v", err)
	}
	if _, err := NewPlan(got, Recipe{Method: RTN, Type: ggml.F32}); err == nil {
		t.Error("a quantized file was taken without a word")
	}
	if isOriginal(testmodel.New("llama").Source()) {
		t.Error("a source that does not say so is an original")
	}
}
