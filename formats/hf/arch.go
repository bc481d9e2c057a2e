package hf

import (
	"maps"
	"slices"
)

// architecture says how a model class of the transformers library appears in GGUF. All of them are pre-norm
// transformers with RMSNorm, grouped-query attention with RoPE and a gated SiLU MLP.
type architecture struct {
	name string // general.architecture
	// interleave: llama.cpp rotates neighbouring elements of a head, Hugging Face those half a head apart, so the rows
	// of q and k change places. Otherwise llama.cpp follows Hugging Face.
	interleave bool
	headNorms  bool // q_norm and k_norm
	// qkvBias: q, k and v always have a bias. Otherwise biasKey is the key of config.json that gives one to q, k, v and
	// o, and mlpBiasKey the key for the MLP; "" if there is none.
	qkvBias    bool
	biasKey    string
	mlpBiasKey string
	window     windowKind
	ropeFreqs  bool // may carry Llama 3's frequency factors
}

// windowKind says what sliding_window means.
type windowKind int

const (
	noWindow     windowKind = iota
	window                  // all layers, where it is set
	windowIfUsed            // where use_sliding_window is true, in the layers from max_window_layers on
)

// architectures by the class that config.json names. A family that fits is a row.
var architectures = map[string]*architecture{
	"LlamaForCausalLM": {
		name: "llama", interleave: true, biasKey: "attention_bias", mlpBiasKey: "mlp_bias", ropeFreqs: true,
	},
	"MistralForCausalLM": {name: "llama", interleave: true, window: window, ropeFreqs: true},
	"Qwen2ForCausalLM":   {name: "qwen2", qkvBias: true, window: windowIfUsed},
	"Qwen3ForCausalLM":   {name: "qwen3", headNorms: true, biasKey: "attention_bias", window: windowIfUsed},
}

// Architectures lists the model classes that Open accepts, sorted.
func Architectures() []string { return slices.Sorted(maps.Keys(architectures)) }
