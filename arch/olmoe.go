package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// OLMoE (Muennighoff et al., arXiv:2409.02060): queries and keys normalised over their full width, and experts whose
// weights are the router's probabilities as they are.
func init() {
	register(&Family{Name: "olmoe", Classes: []string{"OlmoeForCausalLM"},
		Convert: convertOLMoE,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			return h.spec(func(b *model.Loader, i int) {
				norm := h.norm(b, "attn_norm")
				a := h.attention(b, model.Optional, model.Absent)
				h.wideNorms(b, a)
				b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
				norm = h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: norm, Branch: h.moe(b).Branch()})
			})
		},
	})
}

func convertOLMoE(c *Conversion) {
	r := c.Read(Defaults{Context: 4096, Eps: 1e-5})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 2048, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	experts := o.Int(c.alias("num_experts", "num_local_experts"), 64, 1, maxWidth)
	used := o.Int("num_experts_per_tok", 8, 1, max(experts, 1))
	if o.Bool("norm_topk_prob", false) {
		c.Refuse("norm_topk_prob", "GGUF readers take the weights of a token's experts as they are")
	}
	if o.Bool("attention_bias", false) {
		c.Refuse("attention_bias", "GGUF readers know no bias of OLMoE's attention output")
	}
	if o.Has("clip_qkv") {
		c.Refuse("clip_qkv", "GGUF readers do not clip OLMoE's queries, keys and values")
	}
	if o.Err() == nil && r.KVHeads != r.Heads {
		c.Refuse("num_key_value_heads", "GGUF readers take as many heads of keys as of queries")
	}
	c.wantUndivided(r)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.SetExperts(experts, used, 0)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, false, false)
		l.wideNorms(r)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.experts(r, experts, r.FFN)
	}
	c.OwnHead(r)
}
