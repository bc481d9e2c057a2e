package pipeline

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/llmq/llmq/calib"
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

// TestKeptCodes: NVIDIA's NVFP4 becomes GGUF's code by code, with the factors that llama.cpp's converter writes, from a folder and
// from that file.
func TestKeptCodes(t *testing.T) {
	for _, name := range []string{"nvfp4-modelopt", "nvfp4-ct"} {
		dir := filepath.Join(shared.Path(t, "archs"), name)
		folder, err := hf.Open(dir, hf.Options{Pre: "qwen2"})
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		path := filepath.Join(t.TempDir(), "folder.gguf")
		again := filepath.Join(t.TempDir(), "again.gguf")
		keptCodes(t, folder, path, filepath.Join(dir, "expected.gguf"))
		file, err := gguf.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		scaled, err := gguf.Scales(file)
		if err != nil {
			t.Fatal(err)
		}
		keptCodes(t, scaled, again, path)
		plan, err := NewPlan(scaled, Recipe{Method: RTN, Type: ggml.Q8_0, KeepCodes: true})
		if err != nil {
			t.Fatal(err)
		}
		rep, err := Run(t.Context(), scaled, plan, again, Options{Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rep.Tensors {
			if want := map[bool]string{true: "NVFP4"}[r.Type == "Q8_0"]; r.RequantizedFrom != want {
				t.Errorf("%s, %s: requantized from %q, want %q", r.Name, r.Type, r.RequantizedFrom, want)
			}
		}
	}
}

// keptCodes converts a source to NVFP4 and compares weights and factors with those of another file.
func keptCodes(t *testing.T, src Source, path, like string) {
	t.Helper()
	plan, err := NewPlan(src, Recipe{Method: RTN, Type: ggml.NVFP4, Embedding: ggml.F16, Output: ggml.F16, KeepCodes: true})
	if err != nil {
		t.Fatal(err)
	}
	rep, err := Run(t.Context(), src, plan, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	want, err := gguf.Open(like)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	kept := 0
	for i, r := range rep.Tensors {
		if r.Type == "NVFP4" && (!r.Lossless || r.RelativeError != 0 || r.RequantizedFrom != "") {
			t.Errorf("%s: lossless %v, relative error %g, requantized from %q", r.Name, r.Lossless, r.RelativeError, r.RequantizedFrom)
		}
		if r.Type != "NVFP4" && plan.Tensors[i].values == nil {
			continue
		}
		kept++
		a, err := got.Tensor(r.Name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := want.Tensor(r.Name)
		if err != nil {
			t.Fatal(err)
		}
		if a.Type != b.Type || !slices.Equal(a.Shape, b.Shape) || !bytes.Equal(a.Data, b.Data) {
			t.Errorf("%s: %s %v is not what %s has", r.Name, a.Type.Name, a.Shape, like)
		}
	}
	if kept != 14 {
		t.Errorf("%d weights and factors, want 14", kept)
	}
	if _, err := Run(t.Context(), src, plan, path, Options{Calib: &calib.Set{}, Overwrite: true}); err == nil {
		t.Error("codes that are kept are calibrated")
	}
}
