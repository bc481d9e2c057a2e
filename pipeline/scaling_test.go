package pipeline

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// TestScalingIsExact: powers of two, with which everything is scaled that a family lets be scaled, leave its predictions as they are.
func TestScalingIsExact(t *testing.T) {
	archs := shared.Path(t, "archs")
	for _, name := range []string{"command-r", "deepseek3", "falcon-h1", "gemma2", "gemma4-e", "gemma4-moe", "glm4", "gpt-oss", "granitehybrid",
		"lfm2", "llama4", "nemotron_h", "phi3", "qwen2moe", "qwen3next", "qwen35"} {
		t.Run(name, func(t *testing.T) {
			src, err := hf.Open(filepath.Join(archs, name), hf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			m := openModel(t, src)
			set := &calib.Set{SeqLen: 16, Sequences: make([][]int32, 1)}
			for i := range set.SeqLen {
				set.Sequences[0] = append(set.Sequences[0], int32((i*i*7+i*31+11)%(m.Vocab-1)))
			}
			scaled := 0
			path, _ := mustRun(t, src, Recipe{Method: scaling{&scaled}, Type: ggml.F32}, Options{Calib: set})
			got, err := arch.Open(open(t, path))
			if err != nil {
				t.Fatal(err)
			}
			got.Precision, m.Precision = kernels.F32, kernels.F32
			res, err := eval.Perplexity(t.Context(), got, set.Sequences[0], eval.Options{Context: set.SeqLen, ScoreAll: true, Base: m})
			if err != nil {
				t.Fatal(err)
			}
			if !(res.KL < 1e-6) || scaled == 0 {
				t.Errorf("%d sites scaled: the divergence is %.2g", scaled, res.KL)
			}
		})
	}
}

// scaling is a transform that scales whatever can be, and the method that asks for it.
type scaling struct{ sites *int }

func (s scaling) Name() string                      { return "scaling" }
func (s scaling) Memory(out, in int) int64          { return RTN.Memory(out, in) }
func (s scaling) Open(in *quant.Stats) quant.Solver { return RTN.Open(in) }
func (s scaling) Needs() quant.Needs {
	return quant.Needs{Stats: true, Transforms: []quant.Transform{s}}
}

func (s scaling) Transform(_ context.Context, g *quant.Group) (*quant.Folding, error) {
	f := &quant.Folding{Group: g.Name}
	if g.Prev == nil {
		return f, nil
	}
	*s.sites++
	f.Scale = make([]float32, g.Sample.Cols)
	for j := range f.Scale {
		f.Scale[j] = []float32{1, 2, 0.5, 4, 0.25}[j%5] // heads differ
	}
	g.Prev.Share(f.Scale)
	return f, nil
}
