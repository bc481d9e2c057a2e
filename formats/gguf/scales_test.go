package gguf_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/tensor"
)

// TestScales: weights of NVFP4 have their factors in them, by the row and as a whole, and nothing else changes.
func TestScales(t *testing.T) {
	const weight, experts, rows, cols = "blk.0.ffn_up_exps.weight", 2, 3, 64
	values := make([]float32, experts*rows*cols)
	for i := range values {
		values[i] = float32(i%13) - 6
	}
	data := make([]byte, len(values)/64*36)
	for i := range len(values) / 64 {
		ggml.NVFP4.Encode(data[36*i:36*i+36], values[64*i:64*i+64], nil)
	}
	plain := make([]float32, len(values))
	ggml.NVFP4.Unpack(plain, data)
	write := func(scales ...float32) *gguf.File {
		f32 := func(v ...float32) []byte { b := make([]byte, 4*len(v)); tensor.EncodeF32(b, v); return b }
		path := filepath.Join(t.TempDir(), "x.gguf")
		infos := []ggml.Info{
			{Name: weight, Type: ggml.NVFP4, Shape: []int{experts, rows, cols}},
			{Name: "blk.0.ffn_up_exps.scale", Type: ggml.F32, Shape: []int{len(scales)}},
			{Name: "blk.0.ffn_up_exps.input_scale", Type: ggml.F32, Shape: []int{1}},
			{Name: "blk.0.ffn_norm.weight", Type: ggml.F32, Shape: []int{2}},
		}
		w := create(t, path, nil, infos, gguf.Options{})
		for i, b := range [][]byte{data, f32(scales...), f32(7), f32(1, 2)} {
			if err := w.WriteRows(infos[i].Name, 0, b); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return open(t, path)
	}
	for _, scales := range [][]float32{{0.5}, {0.5, -3}} {
		s, err := gguf.Scales(write(scales...))
		if err != nil || s == nil {
			t.Fatal(s, err)
		}
		if infos := s.Tensors(); len(infos) != 2 || infos[0].Type != ggml.F32 || infos[1].Name != "blk.0.ffn_norm.weight" {
			t.Errorf("tensors are %v", infos)
		}
		for _, span := range [][2]int{{0, experts * rows}, {2, 5}, {4, 4}} {
			got, err := s.Rows(weight, span[0], span[1])
			if err != nil {
				t.Fatal(err)
			}
			x := make([]float32, got.Elements())
			tensor.DecodeF32(x, got.Data)
			for i, v := range x {
				at := span[0]*cols + i
				if want := plain[at] * scales[at/cols/rows%len(scales)]; v != want {
					t.Fatalf("scales %v, rows %v: element %d is %v, want %v", scales, span, i, v, want)
				}
			}
		}
		whole, err := s.Tensor(weight)
		if err != nil || len(whole.Data) != 4*len(values) || whole.Type != ggml.F32 {
			t.Errorf("the whole is %v, %v", whole, err)
		}
		s.Release(whole)
	}
	if _, err := gguf.Scales(write(1, 2, 3)); err == nil || !strings.Contains(err.Error(), `"blk.0.ffn_up_exps.scale": F32 [3] is no factor`) {
		t.Errorf("three factors of two experts: %v", err)
	}
}
