package arch

import (
	"fmt"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// GPT-NeoX (Black et al., arXiv:2204.06745) and Pythia (Biderman et al., arXiv:2304.01373): LayerNorm, RoPE on part of a
// head, q, k and v in one linear head by head, an MLP of GELU, which mostly is beside the attention with a norm of its own.
func init() {
	register(&Family{Name: "gptneox", Classes: []string{"GPTNeoXForCausalLM"}, Convert: convertGPTNeoX,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			if !k.Has("use_parallel_residual") {
				k.Fail("use_parallel_residual", "the key is missing")
			}
			side := k.Bool("use_parallel_residual", true)
			return h.spec(func(b *model.Loader, i int) {
				a, mlp := h.jointAttention(b, model.Required, model.Required), h.plainMLP(b, model.Required)
				if !side {
					h.sequential(b, a, mlp)
					return
				}
				parallel(b, h.norm(b, "attn_norm"), a, h.norm(b, "ffn_norm"), mlp)
			})
		},
	})
	tokenizes(&Tokenizer{Pre: "olmo"}, "GPTNeoXForCausalLM")
}

func convertGPTNeoX(c *Conversion) {
	r := c.Read(Defaults{Heads: 64, Vocab: 50432, Context: 2048, Eps: 1e-5, Act: "gelu"})
	r.LayerNorm = true
	r.KVHeads = r.Heads
	o := c.Config
	r.FFN = o.Int("intermediate_size", 24576, 1, maxWidth)
	c.wantPlainGELU(r)
	rope := c.readRoPE(r, ropeOptions{ThetaKey: c.alias("rotary_emb_base", "rope_theta"), Partial: true,
		PartialDefault: o.Float("rotary_pct", 0.25, 0, 1)})
	c.wantHeadDim(r)
	bias, side := o.Bool("attention_bias", true), o.Bool("use_parallel_residual", true)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	c.SetInt("rope.dimension_count", rope.dims)
	c.setUnusualRoPE(rope)
	c.Set("use_parallel_residual", side)
	c.EmbeddingsFrom("gpt_neox.embed_in.weight", r)
	for i := range r.Layers {
		l := c.LayerAt(i, fmt.Sprintf("gpt_neox.layers.%d.", i))
		if !bias && l.Has("attention.query_key_value.bias") {
			bias = true
			c.Warn("%s: attention_bias is false, but the attention has biases: they are kept", o.File)
		}
		l.BiasedNorm("attn_norm", "input_layernorm", r.Dim)
		l.ZeroBias("attn_qkv", "attention.query_key_value", 3*r.Dim, r.Dim, bias).Rows(func(row int) int {
			part, head := row/r.Dim, row%r.Dim/r.HeadDim
			return (3*head+part)*r.HeadDim + row%r.HeadDim
		})
		l.ZeroBias("attn_output", "attention.dense", r.Dim, r.Dim, bias)
		l.BiasedNorm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.Linear("ffn_up", "mlp.dense_h_to_4h", r.FFN, r.Dim, true)
		l.Linear("ffn_down", "mlp.dense_4h_to_h", r.Dim, r.FFN, true)
	}
	c.finalNorm("gpt_neox.final_layer_norm", r.Dim)
	c.untiedOutput(r, "embed_out.weight")
}
