package testmodel

import (
	"math/rand/v2"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/tensor"
)

// Checkpoint is what Plant starts from.
type Checkpoint interface {
	Name() string
	Metadata() gguf.Metadata
	Tensors() []ggml.Info
	Tensor(name string) (*ggml.Tensor, error)
}

// followers lists the linears that read a norm's output, by the norm's last parts.
var followers = map[string][]string{
	"attn_norm.weight":   {"attn_q.weight", "attn_k.weight", "attn_v.weight"},
	"ffn_norm.weight":    {"ffn_gate.weight", "ffn_up.weight"},
	"output_norm.weight": {"output.weight"},
}

// Plant returns a copy of a checkpoint with outlier features: in each norm before linears the weights of so many
// channels, drawn from a seeded generator, are multiplied by factor, and the columns that read them divided by it. The
// function stays the same. A norm before a tied head is left alone. The tensors that change become F32.
func Plant(src Checkpoint, channels int, factor float32) (*Source, error) {
	s := &Source{Path: src.Name() + "+outliers", KV: append(gguf.Metadata(nil), src.Metadata()...)}
	for _, info := range src.Tensors() {
		t, err := src.Tensor(info.Name)
		if err != nil {
			return nil, err
		}
		s.List = append(s.List, *t)
	}
	rng := rand.New(rand.NewPCG(50, 4))
	for _, info := range src.Tensors() {
		i := strings.LastIndexByte(strings.TrimSuffix(info.Name, ".weight"), '.') + 1
		prefix, stem := info.Name[:i], info.Name[i:]
		var linears []*ggml.Tensor
		for _, f := range followers[stem] {
			if t := s.Find(prefix + f); t != nil {
				linears = append(linears, t)
			}
		}
		if len(linears) == 0 {
			continue
		}
		chosen := rng.Perm(info.Cols())[:channels]
		scaleColumns(s.Find(info.Name), chosen, factor)
		for _, l := range linears {
			scaleColumns(l, chosen, 1/factor)
		}
	}
	return s, nil
}

// scaleColumns makes t F32 and multiplies some of its columns.
func scaleColumns(t *ggml.Tensor, columns []int, factor float32) {
	values := make([]float32, t.Elements())
	t.Type.Unpack(values, t.Data)
	for r := 0; r < len(values); r += t.Cols() {
		for _, c := range columns {
			values[r+c] *= factor
		}
	}
	t.Type, t.Data = ggml.F32, make([]byte, 4*len(values))
	tensor.EncodeF32(t.Data, values)
}
