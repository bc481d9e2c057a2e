package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Qwen2 (arXiv:2407.10671) and Qwen3 (arXiv:2505.09388), dense.
func init() {
	register(&Family{Name: "qwen2", Unwindowed: true, Classes: []string{"Qwen2ForCausalLM"},
		Convert: func(c *Conversion) { convertQwen(c, Defaults{Context: 32768, KVHeads: 32}, false) },
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			spec := h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Required, model.Absent).Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
			spec.Outer = func(b *model.Loader) model.Ends {
				return model.Ends{Norm: h.norm(b, "output_norm"), HeadBias: b.Vector("output.bias", h.vocab, model.Optional)}
			}
			return spec
		},
	})
	register(&Family{Name: "qwen3", Unwindowed: true, Classes: []string{"Qwen3ForCausalLM"},
		Convert: func(c *Conversion) { convertQwen(c, Defaults{Context: 32768, KVHeads: 32, HeadDim: 128}, true) },
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				b.Residual(h.normedAttention(b))
				b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
		},
	})
}

func convertQwen(c *Conversion, d Defaults, headNorms bool) {
	r := c.Read(d)
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	if headNorms {
		c.wantFalse("attention_bias")
	}
	window, windowed := c.windowFrom(r)
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setWindow(window, windowed)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.normedAttention(r, headNorms)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.gatedMLP(r, false)
	}
	c.Head(r)
}
