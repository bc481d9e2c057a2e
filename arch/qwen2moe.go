package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Qwen2-MoE (arXiv:2407.10671): Qwen2's attention; experts whose weights are the router's probabilities as they are; an
// expert for all tokens, whose output has a gate of its own.
func init() {
	register(&Family{Name: "qwen2moe", Unwindowed: true, Classes: []string{"Qwen2MoeForCausalLM"},
		Convert: convertQwen2MoE,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			shared := k.Int("expert_shared_feed_forward_length", h.ffn, 1, model.MaxWidth)
			h.dividedFFN(k)
			return h.spec(func(b *model.Loader, i int) {
				attn := h.norm(b, "attn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
				norm := h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: norm, Branch: h.gatedShared(b, h.moe(b), shared).Branch()})
			})
		},
	})
}

func convertQwen2MoE(c *Conversion) {
	r := c.Read(Defaults{Context: 32768, KVHeads: 16})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 5632, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	bias := o.Bool("qkv_bias", true)
	experts := o.Int(c.alias("num_experts", "num_local_experts"), 60, 1, maxWidth)
	used := o.Int("num_experts_per_tok", 4, 1, max(experts, 1))
	ffn := o.Int("moe_intermediate_size", 1408, 1, maxWidth)
	shared := o.Int("shared_expert_intermediate_size", 5632, 1, maxWidth)
	if o.Bool("norm_topk_prob", false) {
		c.Refuse("norm_topk_prob", "GGUF readers take the weights of a token's experts as they are")
	}
	c.sparseEverywhere()
	window, windowed := c.windowFrom(r)
	c.wantUndivided(r)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.SetExperts(experts, used, ffn)
	c.SetInt("expert_shared_feed_forward_length", shared)
	c.setWindow(window, windowed)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, bias, false)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.experts(r, experts, ffn)
		l.gatedShared(r, shared)
	}
	c.OwnHead(r)
}
