package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Qwen3-MoE (arXiv:2505.09388): Qwen3's attention, and experts chosen by a softmax over all of them.
func init() {
	register(&Family{
		Name:    "qwen3moe",
		Classes: []string{"Qwen3MoeForCausalLM"},
		Convert: convertQwen3MoE,
		Spec: func(k *model.Keys) *model.Spec {
			return readHyper(k, elementwise.RoPEHalves).qwen3MoE(k)
		},

		Unwindowed: true,
	})
}

// qwen3MoE describes Qwen3's attention with a mixture of experts in each layer.
func (h *hyper) qwen3MoE(k *model.Keys) *model.Spec {
	h.dividedFFN(k)
	return h.spec(func(b *model.Loader, i int) {
		b.Residual(h.normedAttention(b))
		norm := h.norm(b, "ffn_norm")
		moe := h.moe(b)
		moe.Normalize = true
		b.Residual(model.Residual{Pre: norm, Branch: moe.Branch()})
	})
}

func convertQwen3MoE(c *Conversion) {
	r := c.Read(Defaults{Context: 32768, KVHeads: 4, HeadDim: 0})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	c.wantFalse("attention_bias")
	experts := o.Int(c.alias("num_experts", "num_local_experts"), 128, 1, maxWidth)
	ffn := o.Int("moe_intermediate_size", 768, 1, maxWidth)
	if !o.Bool("norm_topk_prob", false) {
		c.Refuse("norm_topk_prob", "GGUF readers divide the weights of a token's experts by their sum")
	}
	c.sparseEverywhere()
	window := 0 // of all layers
	if o.Bool("use_sliding_window", false) && (o.Has("sliding_window") || !o.Present("sliding_window")) {
		window = o.Int("sliding_window", 4096, 1, maxContext)
	}
	if o.Err() == nil {
		c.SetBase(r, rope)
		c.SetExperts(experts, o.Int("num_experts_per_tok", 8, 1, experts), ffn)
		c.setHeadDim(r)
		if window > 0 {
			c.SetInt("attention.sliding_window", window)
		}
	}
	if o.Err() != nil {
		return
	}
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.normedAttention(r, true)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.experts(r, experts, ffn)
	}
	c.Head(r)
}
