// Package testmodel makes small models with random weights in every supported architecture: as a model.Source in memory
// and as a Hugging Face folder, with a forward pass of its own in float64 to compare with. The same seed gives the same
// model everywhere, so tests need no files.
package testmodel

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/llmq/llmq/tensor"
)

// Config is what config.json says, in its own names.
type Config struct {
	Architectures         []string       `json:"architectures"`
	ModelType             string         `json:"model_type"`
	HiddenSize            int            `json:"hidden_size"`
	IntermediateSize      int            `json:"intermediate_size"`
	NumHiddenLayers       int            `json:"num_hidden_layers"`
	NumAttentionHeads     int            `json:"num_attention_heads"`
	NumKeyValueHeads      int            `json:"num_key_value_heads"`
	HeadDim               int            `json:"head_dim,omitempty"`
	HiddenAct             string         `json:"hidden_act"`
	RMSNormEps            float64        `json:"rms_norm_eps"`
	RopeTheta             float64        `json:"rope_theta"`
	RopeScaling           map[string]any `json:"rope_scaling"`
	MaxPositionEmbeddings int            `json:"max_position_embeddings"`
	VocabSize             int            `json:"vocab_size"`
	TieWordEmbeddings     bool           `json:"tie_word_embeddings"`
	AttentionBias         bool           `json:"attention_bias,omitempty"`
	MLPBias               bool           `json:"mlp_bias,omitempty"`
	SlidingWindow         int            `json:"sliding_window,omitempty"`
	BOSTokenID            int            `json:"bos_token_id"`
	EOSTokenID            int            `json:"eos_token_id"`
	TorchDtype            string         `json:"torch_dtype"`
}

// Tensor is a weight of the checkpoint. Its values are exact in bfloat16.
type Tensor struct {
	Name  string // Hugging Face's
	Shape []int  // out×in
	Data  []float32
}

// Model is a checkpoint.
type Model struct {
	Name    string
	Config  Config
	Tensors []Tensor

	members map[string]any // of config.json, in the place of Config; nil: Config says all
}

// family is what distinguishes the three GGUF architectures in a checkpoint.
type family struct {
	class, modelType string
	addBOS           bool
}

var families = map[string]family{
	"llama":   {class: "LlamaForCausalLM", modelType: "llama", addBOS: true},
	"mistral": {class: "MistralForCausalLM", modelType: "mistral", addBOS: true},
	"qwen2":   {class: "Qwen2ForCausalLM", modelType: "qwen2"},
	"qwen3":   {class: "Qwen3ForCausalLM", modelType: "qwen3"},

	"qwen3_moe":   {class: "Qwen3MoeForCausalLM", modelType: "qwen3_moe"},
	"gemma3_text": {class: "Gemma3ForCausalLM", modelType: "gemma3_text"},
}

// base is a model of hidden size 64; each entry of specs changes what it is there to test.
var base = Config{
	HiddenSize: 64, IntermediateSize: 160, NumHiddenLayers: 2, NumAttentionHeads: 4, NumKeyValueHeads: 2,
	HiddenAct: "silu", RMSNormEps: 1e-5, RopeTheta: 10000, MaxPositionEmbeddings: 256, TorchDtype: "bfloat16",
}

// specs, by name: the family and the change to base.
var specs = []struct {
	name, family string
	set          func(c *Config)
}{
	// All columns are multiples of 256, so that every block type fits.
	{"llama", "llama", func(c *Config) { c.HiddenSize, c.IntermediateSize = 256, 512 }},
	// Tied, three bands of Llama 3.1's scaling, every optional bias, 3 query heads per key head, a layer more than the
	// others; columns that no super-block divides.
	{"llama3-tied", "llama", func(c *Config) {
		c.NumHiddenLayers = 3
		c.HiddenSize, c.NumAttentionHeads, c.NumKeyValueHeads = 96, 6, 2
		c.TieWordEmbeddings, c.AttentionBias, c.MLPBias = true, true, true
		c.RopeTheta = 500000
		c.RopeScaling = map[string]any{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
			"high_freq_factor": 4.0, "original_max_position_embeddings": 128}
	}},
	{"llama-linear", "llama", func(c *Config) {
		c.RopeScaling = map[string]any{"rope_type": "linear", "factor": 2.5}
	}},
	// Explicit head_dim, one key head, a window shorter than the tests' texts.
	{"mistral", "mistral", func(c *Config) { c.HeadDim, c.NumKeyValueHeads, c.SlidingWindow = 24, 1, 7 }},
	// ffn_down's 176 columns are not a multiple of 32: no block type fits.
	{"qwen2", "qwen2", func(c *Config) { c.IntermediateSize, c.RMSNormEps = 176, 1e-6 }},
	{"qwen2-yarn", "qwen2", func(c *Config) {
		// Long enough an original context that some pairs turn more than 32 times in it, and some less than once.
		c.MaxPositionEmbeddings = 8192
		c.RopeScaling = map[string]any{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
	}},
	{"qwen3", "qwen3", func(c *Config) {
		c.HeadDim, c.TieWordEmbeddings, c.RMSNormEps, c.RopeTheta = 32, true, 1e-6, 1000000
	}},
}

// Names lists the models.
func Names() []string {
	var names []string
	for _, s := range specs {
		names = append(names, s.name)
	}
	return names
}

// New makes the model of a name.
func New(name string) *Model {
	for _, s := range specs {
		if s.name == name {
			c := base
			c.Architectures = []string{families[s.family].class}
			c.ModelType = families[s.family].modelType
			c.VocabSize = vocabSize
			c.BOSTokenID, c.EOSTokenID = bosID, eosID
			s.set(&c)
			return build(name, c)
		}
	}
	panic(fmt.Sprintf("testmodel: there is no model %q, only %v", name, Names()))
}

func (m *Model) family() family { return families[m.Config.ModelType] }

// headDim is the length of a head, whether config.json gives it or not.
func (c *Config) headDim() int {
	if c.HeadDim != 0 {
		return c.HeadDim
	}
	return c.HiddenSize / c.NumAttentionHeads
}

// FromConfig makes a model of the members that a config.json may have, of one of the classes that the library's forward
// pass is written for here. Models of the same shapes have the same weights.
func FromConfig(members map[string]any) *Model {
	m := &Model{Name: "members", members: members}
	m.Config.ModelType, _ = members["model_type"].(string)
	m.draw()
	return m
}

// build draws the weights that a configuration calls for.
func build(name string, c Config) *Model {
	m := &Model{Name: name, Config: c}
	m.draw()
	return m
}

// draw draws the weights, each tensor from a generator seeded with its name.
func (m *Model) draw() {
	l := m.library()
	add := func(tensorName string, mean, std float64, shape ...int) {
		h := fnv.New64a()
		fmt.Fprint(h, m.Name, "/", tensorName)
		rng := rand.New(rand.NewPCG(h.Sum64(), 1))
		n := 1
		for _, d := range shape {
			n *= d
		}
		data := make([]float32, n)
		for i := range data {
			data[i] = tensor.BF16(tensor.ToBF16(float32(mean + std*rng.NormFloat64())))
		}
		m.Tensors = append(m.Tensors, Tensor{tensorName, shape, data})
	}
	q, kv := l.heads*l.headDim, l.kvHeads*l.headDim
	linear := func(name string, out, in int, gain float64, bias bool) {
		add(name+".weight", 0, gain/math.Sqrt(float64(in)), out, in)
		if bias {
			add(name+".bias", 0, 0.3, out)
		}
	}
	mlp := func(prefix string, ffn int) {
		linear(prefix+"gate_proj", ffn, l.dim, 1, l.mlpBias)
		linear(prefix+"up_proj", ffn, l.dim, 1, l.mlpBias)
		linear(prefix+"down_proj", l.dim, ffn, 1, l.mlpBias)
	}
	norm := 1.0 // the mean of a norm's weights
	if l.gemma {
		norm = 0
	}
	add("model.embed_tokens.weight", 0, 2/math.Sqrt(float64(l.dim)), l.vocab, l.dim)
	for i := range l.layers {
		p := fmt.Sprintf("model.layers.%d.", i)
		add(p+"input_layernorm.weight", norm, 0.2, l.dim)
		// q and k are large, so that attention differs from an average.
		linear(p+"self_attn.q_proj", q, l.dim, 1.5, l.qkvBias)
		linear(p+"self_attn.k_proj", kv, l.dim, 1.5, l.qkvBias)
		linear(p+"self_attn.v_proj", kv, l.dim, 1, l.qkvBias)
		linear(p+"self_attn.o_proj", l.dim, q, 1, l.oBias)
		if l.qkNorm {
			add(p+"self_attn.q_norm.weight", norm, 0.2, l.headDim)
			add(p+"self_attn.k_norm.weight", norm, 0.2, l.headDim)
		}
		add(p+"post_attention_layernorm.weight", norm, 0.2, l.dim)
		if l.gemma {
			add(p+"pre_feedforward_layernorm.weight", norm, 0.2, l.dim)
			add(p+"post_feedforward_layernorm.weight", norm, 0.2, l.dim)
		}
		if l.experts == 0 {
			mlp(p+"mlp.", l.ffn)
			continue
		}
		linear(p+"mlp.gate", l.experts, l.dim, 2, false)
		for e := range l.experts {
			mlp(fmt.Sprintf("%smlp.experts.%d.", p, e), l.expertFFN)
		}
	}
	add("model.norm.weight", norm, 0.2, l.dim)
	if !l.tied {
		linear("lm_head", l.vocab, l.dim, 2, false)
	}
}

// Tokens returns n token ids drawn from a seeded generator, special ones left out.
func (m *Model) Tokens(n int, seed uint64) []int32 {
	rng := rand.New(rand.NewPCG(seed, 2))
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = rng.Int32N(bosID)
	}
	return ids
}

// tensor returns a weight by Hugging Face's name, nil if there is none.
func (m *Model) tensor(name string) *Tensor {
	i := slices.IndexFunc(m.Tensors, func(t Tensor) bool { return t.Name == name })
	if i < 0 {
		return nil
	}
	return &m.Tensors[i]
}
