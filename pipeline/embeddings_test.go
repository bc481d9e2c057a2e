package pipeline

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/tensor"
)

// TestEmbeddingsAsWritten: calibration begins with the hidden states that a reader of the file has, those of embeddings for each layer too.
func TestEmbeddingsAsWritten(t *testing.T) {
	srcs := []Source{testmodel.New("llama3-tied").Source()}
	if archs, ok := shared.Lookup("archs"); ok {
		src, err := hf.Open(filepath.Join(archs, "gemma4-e"), hf.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		srcs = append(srcs, src)
	}
	for _, src := range srcs {
		m := openModel(t, src)
		r := Recipe{Method: RTN, Type: ggml.Q4_0, Embedding: ggml.Q4_0}
		plan, err := NewPlan(src, r)
		if err != nil {
			t.Fatal(err)
		}
		path, _ := mustRun(t, src, r, Options{})
		written := openModel(t, open(t, path))
		tokens := []int32{5, 1, 200, 77, 5, 31}
		got, want, original := tensor.New(len(tokens), m.Width), tensor.New(len(tokens), m.Width), tensor.New(len(tokens), m.Width)
		if err := m.Embed(got, tokens, len(tokens), (&task{plan: plan}).roundEmbeddings()); err != nil {
			t.Fatal(err)
		}
		if err := written.Embed(want, tokens, len(tokens), nil); err != nil {
			t.Fatal(err)
		}
		if err := m.Embed(original, tokens, len(tokens), nil); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.Data, want.Data) || slices.Equal(got.Data, original.Data) {
			t.Errorf("%s: hidden states are off by %.2g, those of the original by %.2g", src.Name(), distance(want, got), distance(want, original))
		}
	}
}
