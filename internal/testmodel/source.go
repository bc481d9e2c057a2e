package testmodel

import (
	"fmt"
	"math"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/tensor"
)

// Source is a model in memory, as GGUF presents one. Tests may change what it holds.
type Source struct {
	Path string
	KV   gguf.Metadata
	List []ggml.Tensor
}

// Name implements model.Source, as the other methods do.
func (s *Source) Name() string { return s.Path }

func (s *Source) Meta(key string) (any, bool) { return s.KV.Get(key) }

func (s *Source) Tensors() []ggml.Info {
	infos := make([]ggml.Info, len(s.List))
	for i, t := range s.List {
		infos[i] = t.Info
	}
	return infos
}

func (s *Source) Tensor(name string) (*ggml.Tensor, error) {
	if t := s.Find(name); t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%s: tensor %q: there is none", s.Path, name)
}

// Metadata implements pipeline.Source.
func (s *Source) Metadata() gguf.Metadata { return s.KV }

func (s *Source) Release(*ggml.Tensor) {}

func (s *Source) ReadAhead(string) {}

func (s *Source) Close() error { return nil }

// Find returns the tensor of a name, nil if there is none.
func (s *Source) Find(name string) *ggml.Tensor {
	for i := range s.List {
		if s.List[i].Name == name {
			return &s.List[i]
		}
	}
	return nil
}

// stems maps the parts of Hugging Face's names to GGUF's.
var stems = strings.NewReplacer(
	"model.embed_tokens", "token_embd", "model.norm", "output_norm", "lm_head", "output", "model.layers.", "blk.",
	"self_attn.q_proj", "attn_q", "self_attn.k_proj", "attn_k", "self_attn.v_proj", "attn_v",
	"self_attn.o_proj", "attn_output", "self_attn.q_norm", "attn_q_norm", "self_attn.k_norm", "attn_k_norm",
	"input_layernorm", "attn_norm", "post_attention_layernorm", "ffn_norm",
	"mlp.gate_proj", "ffn_gate", "mlp.up_proj", "ffn_up", "mlp.down_proj", "ffn_down",
)

// Source returns the model as a GGUF file would hold it: matrices in BF16, vectors in F32.
func (m *Model) Source() *Source {
	c := &m.Config
	s := &Source{Path: "testmodel/" + m.Name}
	arch := c.ModelType
	if arch == "mistral" {
		arch = "llama"
	}
	s.KV.Set("general.architecture", arch)
	s.KV.Set("general.name", m.Name)
	set := func(key string, value any) { s.KV.Set(arch+"."+key, value) }
	set("block_count", uint32(c.NumHiddenLayers))
	set("context_length", uint32(c.MaxPositionEmbeddings))
	set("embedding_length", uint32(c.HiddenSize))
	set("feed_forward_length", uint32(c.IntermediateSize))
	set("attention.head_count", uint32(c.NumAttentionHeads))
	set("attention.head_count_kv", uint32(c.NumKeyValueHeads))
	set("attention.layer_norm_rms_epsilon", float32(c.RMSNormEps))
	if arch == "llama" {
		set("vocab_size", uint32(c.VocabSize))
		set("rope.dimension_count", uint32(c.headDim()))
	}
	set("rope.freq_base", float32(c.RopeTheta))
	if c.HeadDim != 0 {
		set("attention.key_length", uint32(c.HeadDim))
		set("attention.value_length", uint32(c.HeadDim))
	}
	if c.SlidingWindow != 0 {
		set("attention.sliding_window", uint32(c.SlidingWindow))
	}
	switch c.RopeScaling["rope_type"] {
	case "linear":
		set("rope.scaling.type", "linear")
		set("rope.scaling.factor", float32(c.RopeScaling["factor"].(float64)))
	case "yarn":
		set("rope.scaling.type", "yarn")
		set("rope.scaling.factor", float32(c.RopeScaling["factor"].(float64)))
		set("rope.scaling.original_context_length", uint32(c.RopeScaling["original_max_position_embeddings"].(int)))
	}
	m.tokenizerKV(&s.KV)

	for _, t := range m.Tensors {
		name, data := stems.Replace(t.Name), t.Data
		if arch == "llama" {
			heads := 0
			switch {
			case strings.Contains(name, "attn_q."):
				heads = c.NumAttentionHeads
			case strings.Contains(name, "attn_k."):
				heads = c.NumKeyValueHeads
			}
			if heads > 0 {
				data = interleave(data, heads, c.headDim())
			}
		}
		s.add(name, t.Shape, data)
	}
	if c.RopeScaling["rope_type"] == "llama3" {
		f := m.llama3Factors()
		s.add("rope_freqs.weight", []int{len(f)}, f)
	}
	return s
}

func (s *Source) add(name string, shape []int, data []float32) {
	t := ggml.Tensor{Info: ggml.Info{Name: name, Type: ggml.F32, Shape: shape}}
	if len(shape) > 1 {
		t.Type = ggml.BF16
		t.Data = make([]byte, 2*len(data))
		tensor.EncodeBF16(t.Data, data)
	} else {
		t.Data = make([]byte, 4*len(data))
		tensor.EncodeF32(t.Data, data)
	}
	s.List = append(s.List, t)
}

// interleave reorders the rows of each head of q or k from halves (first half, second half) to pairs, as llama.cpp's
// llama architecture has them.
func interleave(data []float32, heads, headDim int) []float32 {
	out := make([]float32, len(data))
	cols := len(data) / (heads * headDim)
	for h := range heads {
		for j := range headDim / 2 {
			for s := range 2 {
				from, to := h*headDim+s*headDim/2+j, h*headDim+2*j+s
				copy(out[to*cols:(to+1)*cols], data[from*cols:(from+1)*cols])
			}
		}
	}
	return out
}

// llama3Factors are what Llama 3.1's scaling divides each frequency by: rope_freqs.weight.
func (m *Model) llama3Factors() []float32 {
	l := m.library()
	factors := make([]float32, l.headDim/2)
	for i := range factors {
		unscaled := 1 / math.Pow(m.Config.RopeTheta, float64(2*i)/float64(l.headDim))
		factors[i] = float32(unscaled / l.ropes[0].inverse[i])
		if math.IsNaN(float64(factors[i])) {
			panic("testmodel: RoPE factor is not a number")
		}
	}
	return factors
}
