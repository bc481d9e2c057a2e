package arch

import (
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
				b.Residual(h.normedAttention(b))
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
		l.normedAttention(r, true)
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
		l.normedAttention(r, true)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.Linear("ffn_gate_inp", "mlp.gate", experts, r.Dim, false)
		l.FusedExperts("ffn_gate_exps", "mlp.experts.gate_up_proj", experts, ffn, r.Dim, 0, 2*ffn, true)
		l.FusedExperts("ffn_up_exps", "mlp.experts.gate_up_proj", experts, ffn, r.Dim, ffn, 2*ffn, true)
		l.FusedExperts("ffn_down_exps", "mlp.experts.down_proj", experts, r.Dim, ffn, 0, r.Dim, true)
	}
	c.Head(r)
}
