package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// GLM-4.5 (Zhipu AI, arXiv:2508.06471): attention with norms of heads where the configuration says so, RoPE over half of a head,
// and DeepSeek-V3's experts, chosen by sigmoids with a bias, beside shared ones, after some dense layers.
func init() {
	register(&Family{Name: "glm4moe", Classes: []string{"Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"}, Convert: convertGLM4MoE,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			s := h.readSigmoid(k)
			h.dropNextn(k)
			return h.spec(func(b *model.Loader, i int) {
				norm := h.norm(b, "attn_norm")
				a := h.attention(b, model.Optional, model.Absent)
				a.QNorm, a.KNorm = b.OptionalNorm("attn_q_norm", h.headDim, h.eps), b.OptionalNorm("attn_k_norm", h.headDim, h.eps)
				b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
				b.Residual(s.residual(h, b, "post_attention_norm", model.Required))
			})
		}})
}

func convertGLM4MoE(c *Conversion) {
	r := c.Read(Defaults{Context: 131072, Eps: 1e-5, KVHeads: 8})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 10944, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: 0.5})
	m := c.readMixture(r, mixture{experts: 128, used: 8, ffn: 1408, shared: 1, dense: 1, groups: 1, groupsUsed: 1, normalize: true})
	bias, headNorms := o.Bool("attention_bias", false), o.Bool("use_qk_norm", false)
	further := c.nextn(r)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("rope.dimension_count", rope.dims)
	c.setMixture(m)
	c.setNextn(r, further)
	c.Embeddings(r)
	for i := range r.Layers + further {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, bias, false)
		if headNorms {
			l.headNorms(r)
		}
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim)
		l.mixture(i, r, m)
		if i >= r.Layers {
			l.nextn(r)
		}
	}
	c.Head(r)
}
