package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Qwen3-VL (arXiv:2511.21631), the language model: Qwen3 and Qwen3-MoE with a rotary embedding in sections for time, height
// and width, which is the plain one where all tokens are text.
func init() {
	register(&Family{Name: "qwen3vl", Classes: []string{"Qwen3VLForConditionalGeneration"},
		Convert: convertQwen3VL,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			h.readSections(k)
			return h.spec(func(b *model.Loader, i int) {
				b.Residual(h.qwen3Attention(b))
				b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
		},
	})
	register(&Family{Name: "qwen3vlmoe", Classes: []string{"Qwen3VLMoeForConditionalGeneration"},
		Convert: convertQwen3VLMoE,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			h.readSections(k)
			return h.qwen3MoE(k)
		},
	})
}

// readSections reads which pairs turn with a token's time, height and width. They take turns, pair j having j mod 3, until
// one has as many as rope.dimension_sections gives it. All three are the position where tokens are text. What is left over
// GGUF readers do not turn: with sections of 4, 2, 2, the eighth pair.
func (h *hyper) readSections(k *model.Keys) {
	const key = "rope.dimension_sections"
	s := k.Ints(key, 4, -1, 0, model.MaxWidth)
	all := s[0] + s[1] + s[2] + s[3]
	if k.Err() == nil && (all == 0 || all > h.headDim) {
		k.Fail(key, "are %v, want some pairs of a head of %d", s, h.headDim)
	}
	if k.Err() != nil {
		return
	}
	factors, left := make([]float32, h.rope.Dims/2), false
	for j := range factors {
		if factors[j] = 1; j%all >= 3*s[j%all%3] {
			factors[j], left = float32(math.Inf(1)), true // divides the frequency
		}
	}
	if left {
		h.rope.Factors = factors
	}
}

// setSections sets what readers of M-RoPE demand: how many pairs are time's, height's and width's, absent those of the
// class, and how many of the vision model's layers feed the language model's first layers.
func (c *Conversion) setSections(e *rope, absent []int32) {
	if !e.params.Has("mrope_section") && !e.scaling.Has("mrope_section") {
		c.Set("rope.dimension_sections", absent)
	}
}

// qwen3VLSections are the sections that the class takes where config.json is silent.
var qwen3VLSections = []int32{24, 20, 20, 0}

func (c *Conversion) setDeepstack() {
	var layers []int
	if vision := c.Config.Object("vision_config"); vision != nil {
		layers = vision.Ints("deepstack_visual_indexes", 0, maxLayers)
	}
	c.SetInt("n_deepstack_layers", len(layers))
}

func convertQwen3VL(c *Conversion) {
	r := c.Read(Defaults{Context: 128000, KVHeads: 32, HeadDim: 128, Theta: 5e6})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{})
	c.wantFalse("attention_bias")
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.setSections(rope, qwen3VLSections)
	c.setDeepstack()
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.qwenAttention(r, true)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.gatedMLP(r, false)
	}
	c.Head(r)
}

func convertQwen3VLMoE(c *Conversion) {
	r := c.Read(Defaults{Context: 128000, KVHeads: 16, Theta: 5e6})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 5632, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{})
	c.wantFalse("attention_bias")
	experts := o.Int(c.alias("num_experts", "num_local_experts"), 60, 1, maxWidth)
	used := o.Int("num_experts_per_tok", 4, 1, max(experts, 1))
	ffn := o.Int("moe_intermediate_size", 1408, 1, maxWidth)
	c.sparseEverywhere()
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.SetExperts(experts, used, ffn)
	c.setHeadDim(r)
	c.setSections(rope, qwen3VLSections)
	c.setDeepstack()
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.qwenAttention(r, true)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.Linear("ffn_gate_inp", "mlp.gate", experts, r.Dim, false)
		l.FusedExperts("ffn_gate_exps", "mlp.experts.gate_up_proj", experts, ffn, r.Dim, 0, 2*ffn, true)
		l.FusedExperts("ffn_up_exps", "mlp.experts.gate_up_proj", experts, ffn, r.Dim, ffn, 2*ffn, true)
		l.FusedExperts("ffn_down_exps", "mlp.experts.down_proj", experts, r.Dim, ffn, 0, r.Dim, true)
	}
	c.Head(r)
}
