package model

import (
	"maps"
	"slices"

	"github.com/llmq/llmq/kernels/elementwise"
)

// architecture is what sets one model family apart. Everything else is common: a pre-norm transformer with RMSNorm,
// grouped-query attention with RoPE, and a gated SiLU MLP. A family that fits this table is a row, not code.
type architecture struct {
	// rope is RoPEHalves where GGUF keeps Hugging Face's order of rows in q and k, RoPEPairs where converters
	// interleave the two halves of each head.
	rope elementwise.RoPEStyle
	// headNorms: q and k are normalised per head before RoPE (attn_q_norm, attn_k_norm).
	headNorms bool
	// ropeFactors: a tensor rope_freqs.weight may divide the frequencies (Llama 3.1).
	ropeFactors bool
	// biases of linears by stem: true where the tensor must be there, false where it may be.
	biases map[string]bool
}

// The rows agree with llama.cpp's graphs (src/models/*.cpp), which read the files that we write.
var architectures = map[string]*architecture{
	// LlamaForCausalLM, and MistralForCausalLM with its sliding window.
	"llama": {
		rope:        elementwise.RoPEPairs,
		ropeFactors: true,
		biases: map[string]bool{
			"attn_q": false, "attn_k": false, "attn_v": false, "attn_output": false,
			"ffn_gate": false, "ffn_up": false, "ffn_down": false,
		},
	},
	"qwen2": {
		rope:   elementwise.RoPEHalves,
		biases: map[string]bool{"attn_q": true, "attn_k": true, "attn_v": true, "output": false},
	},
	"qwen3": {
		rope:      elementwise.RoPEHalves,
		headNorms: true,
		biases:    map[string]bool{"attn_q": false, "attn_k": false, "attn_v": false, "attn_output": false},
	},
}

// Architectures lists the values of general.architecture that Open accepts, sorted.
func Architectures() []string { return slices.Sorted(maps.Keys(architectures)) }

// LoadsBias says whether readers of an architecture load a bias for a layer's linear, given by its stem ("attn_q").
func LoadsBias(arch, stem string) bool {
	a := architectures[arch]
	if a == nil {
		return false
	}
	_, ok := a.biases[stem]
	return ok
}

// want is a tensor that a model has, or may have.
type want struct {
	name     string
	shape    []int
	optional bool
}

// Names of the tensors outside the layers.
const (
	embedName      = "token_embd.weight"
	outputNormName = "output_norm.weight"
	outputName     = "output.weight"
	ropeFreqsName  = "rope_freqs.weight"
)

// linears gives the shape (out, in) of each linear of a layer, in the order of the forward pass.
func (c *Config) linears() []want {
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	return []want{
		{name: "attn_q", shape: []int{q, c.Dim}},
		{name: "attn_k", shape: []int{kv, c.Dim}},
		{name: "attn_v", shape: []int{kv, c.Dim}},
		{name: "attn_output", shape: []int{c.Dim, q}},
		{name: "ffn_gate", shape: []int{c.FFN, c.Dim}},
		{name: "ffn_up", shape: []int{c.FFN, c.Dim}},
		{name: "ffn_down", shape: []int{c.Dim, c.FFN}},
	}
}

// layerTensors lists a layer's tensors without their "blk.N." prefix.
func (c *Config) layerTensors() []want {
	a := architectures[c.Arch]
	ws := []want{
		{name: "attn_norm.weight", shape: []int{c.Dim}},
		{name: "ffn_norm.weight", shape: []int{c.Dim}},
	}
	if a.headNorms {
		ws = append(ws,
			want{name: "attn_q_norm.weight", shape: []int{c.HeadDim}},
			want{name: "attn_k_norm.weight", shape: []int{c.HeadDim}})
	}
	for _, l := range c.linears() {
		ws = append(ws, want{name: l.name + ".weight", shape: l.shape})
		if required, ok := a.biases[l.name]; ok {
			ws = append(ws, want{name: l.name + ".bias", shape: l.shape[:1], optional: !required})
		}
	}
	return ws
}

// outerTensors lists the tensors outside the layers.
func (c *Config) outerTensors() []want {
	a := architectures[c.Arch]
	ws := []want{
		{name: embedName, shape: []int{c.Vocab, c.Dim}},
		{name: outputNormName, shape: []int{c.Dim}},
		{name: outputName, shape: []int{c.Vocab, c.Dim}, optional: true},
	}
	if a.ropeFactors {
		ws = append(ws, want{name: ropeFreqsName, shape: []int{c.RoPE.Dims / 2}, optional: true})
	}
	if required, ok := a.biases["output"]; ok {
		ws = append(ws, want{name: "output.bias", shape: []int{c.Vocab}, optional: !required})
	}
	return ws
}
