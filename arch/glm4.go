package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// GLM-4-0414 (github.com/zai-org/GLM-4): norms before and after attention and MLP, RoPE in pairs on half of a head, gate
// and up in one linear.
func init() {
	register(&Family{
		Name:    "glm4",
		Classes: []string{"Glm4ForCausalLM"},
		Convert: convertGLM4,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch(), Post: h.norm(b, "post_attention_norm")})
				b.Residual(model.Residual{Pre: mlp, Branch: h.fusedMLP(b, model.SiLU).Branch(), Post: h.norm(b, "post_ffw_norm")})
			})
		},
	})
	tokenizes(&Tokenizer{Pre: "glm4", Tokens: []SpecialToken{{Kind: "bos", Content: "<|endoftext|>"}, {Kind: "eos", Content: "<|endoftext|>"},
		{Kind: "unk", Content: "<|endoftext|>"}, {Kind: "eot", Content: "<|user|>"}}}, "Glm4ForCausalLM")
}

func convertGLM4(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, KVHeads: 2, HeadDim: 128, Vocab: 151552, Context: 131072, Eps: 1.5625e-7})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: 0.5})
	bias := c.Config.Bool("attention_bias", false)
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("rope.dimension_count", rope.dims)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, bias, false)
		l.Norm("post_attention_norm", "post_self_attn_layernorm", r.Dim)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.Linear("ffn_up", "mlp.gate_up_proj", 2*r.FFN, r.Dim, false)
		l.Linear("ffn_down", "mlp.down_proj", r.Dim, r.FFN, false)
		l.Norm("post_ffw_norm", "post_mlp_layernorm", r.Dim)
	}
	c.Head(r)
}
