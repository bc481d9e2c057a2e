package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Seed-OSS (github.com/ByteDance-Seed/seed-oss): Qwen2 with a head size of its own. The norm before the MLP goes under the
// name post_attention_norm.
func init() {
	register(&Family{
		Name:    "seed_oss",
		Classes: []string{"SeedOssForCausalLM"},
		Convert: convertSeedOSS,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "post_attention_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
		},
	})
}

func convertSeedOSS(c *Conversion) {
	r := c.Read(Defaults{Heads: 80, KVHeads: 8, HeadDim: 128, Vocab: 155136, Context: 524288})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{})
	c.wantFalse("attention_out_bias", "mlp_bias")
	bias := c.Config.Bool("attention_bias", true)
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, bias, false)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim)
		l.gatedMLP(r, false)
	}
	c.Head(r)
}
