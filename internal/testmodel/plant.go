package testmodel

import (
	"fmt"
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

// Outliers says what Plant plants: in each norm before linears, so many channels are multiplied by Factor.
type Outliers struct {
	Channels int
	Factor   float32
	Seed     uint64 // which channels
}

// Plant returns a copy of a checkpoint with outlier features. The columns of weights that read a channel are divided by
// its factor, so that the function stays the same. A norm before a tied head is left alone. The tensors that change
// become F32.
func Plant(src Checkpoint, o Outliers) (*Source, error) {
	s := &Source{Path: src.Name() + "+outliers", KV: append(gguf.Metadata(nil), src.Metadata()...)}
	for _, info := range src.Tensors() {
		t, err := src.Tensor(info.Name)
		if err != nil {
			return nil, err
		}
		s.List = append(s.List, *t)
	}
	rng := rand.New(rand.NewPCG(o.Seed, 0))
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
		if o.Channels < 1 || o.Channels > info.Cols() || !(o.Factor > 0) {
			return nil, fmt.Errorf("%s: %d outliers of factor %g in the %d channels of %q", src.Name(), o.Channels, o.Factor,
				info.Cols(), info.Name)
		}
		chosen := rng.Perm(info.Cols())[:o.Channels]
		scaleColumns(s.Find(info.Name), chosen, o.Factor)
		for _, l := range linears {
			scaleColumns(l, chosen, 1/o.Factor)
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
