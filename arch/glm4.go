package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// GLM-4-0414 (github.com/zai-org/GLM-4), and the language model of GLM-4.1V (arXiv:2507.01006): norms before and after attention
// and MLP, RoPE in pairs on half of a head, gate and up in one linear. Where RoPE has sections for time, height and width, which
// is the plain one where all tokens are text, GGUF's readers turn halves, and rows of q and k are put in that order.
func init() {
	register(&Family{
		Name:    "glm4",
		Classes: []string{"Glm4ForCausalLM", "Glm4vForConditionalGeneration"},
		Convert: convertGLM4,
		Spec: func(k *model.Keys) *model.Spec {
			style := elementwise.RoPEPairs
			if turnsSections(k) {
				style = elementwise.RoPEHalves
			}
			h := readHyper(k, style).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch(), Post: h.norm(b, "post_attention_norm")})
				b.Residual(model.Residual{Pre: mlp, Branch: h.fusedMLP(b, model.SiLU).Branch(), Post: h.norm(b, "post_ffw_norm")})
			})
		},
	})
	tokenizes(&Tokenizer{Pre: "glm4", Tokens: []SpecialToken{{Kind: "bos", Content: "<|endoftext|>"}, {Kind: "eos", Content: "<|endoftext|>"},
		{Kind: "unk", Content: "<|endoftext|>"}, {Kind: "eot", Content: "<|user|>"}}}, "Glm4ForCausalLM", "Glm4vForConditionalGeneration")
}

// turnsSections says whether readers turn a GLM-4 by sections: where there are pairs of time and of height. A fourth section's would
// have positions of their own, which are 0 for text.
func turnsSections(k *model.Keys) bool {
	const key = "rope.dimension_sections"
	s := k.Ints(key, 4, 0, 0, model.MaxWidth)
	if k.Err() != nil || s[0] == 0 || s[1] == 0 {
		return false
	}
	if s[3] != 0 {
		k.Fail(key, "are %v, want none in the fourth", s)
	}
	return true
}

func convertGLM4(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, KVHeads: 2, HeadDim: 128, Vocab: 151552, Context: 131072, Eps: 1.5625e-7})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: 0.5})
	sections := rope.params.Ints("mrope_section", 0, maxWidth)
	if sections != nil && c.Config.Err() == nil && !(len(sections) == 3 && sections[0] > 0 && sections[1] > 0) {
		rope.params.Fail("mrope_section", "is %v, want three numbers, the first two above 0: GGUF readers turn no other", sections)
	}
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
		turned := l.attention(r, bias, false)
		if sections != nil {
			turned.pairsToHalves(r.HeadDim, rope.dims)
		}
		l.Norm("post_attention_norm", "post_self_attn_layernorm", r.Dim)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.Linear("ffn_up", "mlp.gate_up_proj", 2*r.FFN, r.Dim, false)
		l.Linear("ffn_down", "mlp.down_proj", r.Dim, r.FFN, false)
		l.Norm("post_ffw_norm", "post_mlp_layernorm", r.Dim)
	}
	c.Head(r)
}
