package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// InternLM2 (arXiv:2403.17297): Llama, with the rows of q, k and v of each group of heads next to each other in one
// tensor of the checkpoint.
func init() {
	register(&Family{
		Name:    "internlm2",
		Classes: []string{"InternLM2ForCausalLM"},
		Convert: convertInternLM2,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
		},
	})
	tokenizes(&Tokenizer{NUL: "🐉", Unused: "[UNUSED", PrefixAlways: true, // chat models end their turns so, though EOS is </s>
		Tokens: []SpecialToken{{Kind: "eos", Content: "<|im_end|>", Always: true}}}, "InternLM2ForCausalLM")
}

func convertInternLM2(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, Vocab: 103168})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{})
	c.wantHeadDim(r)
	c.wantFalse("bias")
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.EmbeddingsFrom("model.tok_embeddings.weight", r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "attention_norm", r.Dim)
		l.grouped("attention.wqkv", r, rope)
		l.Linear("attn_output", "attention.wo", r.Dim, r.Dim, false)
		l.Norm("ffn_norm", "ffn_norm", r.Dim)
		l.Linear("ffn_gate", "feed_forward.w1", r.FFN, r.Dim, false)
		l.Linear("ffn_up", "feed_forward.w3", r.FFN, r.Dim, false)
		l.Linear("ffn_down", "feed_forward.w2", r.Dim, r.FFN, false)
	}
	c.UntiedHead(r, "output.weight")
}

// grouped declares q, k and v of a tensor that has, for each head of keys, the query heads that use it, its own rows and
// those of its values.
func (l *Layer) grouped(from string, r *Config, rope *rope) {
	perGroup := r.Heads / r.KVHeads
	part := func(name string, heads, first int) Tensors {
		p := l.c.part(l.hf+from+".weight", r.KVHeads*(perGroup+2)*r.HeadDim, r.Dim)
		p.Count = r.KVHeads * heads * r.HeadDim
		p.Row = func(row int) int {
			group, in := row/(heads*r.HeadDim), row%(heads*r.HeadDim)
			return (group*(perGroup+2)+first)*r.HeadDim + in
		}
		return Tensors{l.c.add(l.gguf+name+".weight", []int{p.Count, r.Dim}, p)}
	}
	part("attn_q", perGroup, 0).Permute(r.HeadDim, rope.dims)
	part("attn_k", 1, perGroup).Permute(r.HeadDim, rope.dims)
	part("attn_v", 1, perGroup+1)
}
