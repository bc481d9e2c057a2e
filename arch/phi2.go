package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Phi-1, 1.5 and 2 (Gunasekar et al., arXiv:2306.11644): attention beside an MLP of GELU after one LayerNorm, RoPE on
// part of a head, biases everywhere, that of the head too.
func init() {
	register(&Family{Name: "phi2", Classes: []string{"PhiForCausalLM"}, Convert: convertPhi2,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			spec := h.spec(func(b *model.Loader, i int) {
				norm := h.norm(b, "attn_norm")
				parallel(b, norm, h.jointAttention(b, model.Optional, model.Required), norm, h.plainMLP(b, model.Required))
			})
			spec.Outer = func(b *model.Loader) model.Ends {
				return model.Ends{Norm: h.norm(b, "output_norm"), HeadBias: b.Vector("output.bias", h.vocab, model.Required)}
			}
			return spec
		},
	})
	tokenizes(&Tokenizer{Pre: "phi-2"}, "PhiForCausalLM")
}

func convertPhi2(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, Vocab: 51200, Context: 2048, Eps: 1e-5, Act: "gelu_new"})
	r.LayerNorm = true
	o := c.Config
	r.FFN = o.Int(c.alias("intermediate_size", "n_inner"), 8192, 1, maxWidth)
	c.wantPlainGELU(r)
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: 0.5})
	c.wantHeadDim(r)
	if o.Bool("qk_layernorm", false) {
		c.Refuse("qk_layernorm", "GGUF readers do not normalise the heads of q and k")
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	c.SetInt("rope.dimension_count", rope.dims)
	c.setUnusualRoPE(rope)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.BiasedNorm("attn_norm", "input_layernorm", r.Dim)
		q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, true)
		l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, true)
		l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, true)
		l.Linear("attn_output", "self_attn.dense", r.Dim, q, true)
		l.Linear("ffn_up", "mlp.fc1", r.FFN, r.Dim, true)
		l.Linear("ffn_down", "mlp.fc2", r.Dim, r.FFN, true)
	}
	c.finalNorm("model.final_layernorm", r.Dim)
	c.untiedOutput(r, headName)
	c.Tensor("output.bias", "lm_head.bias", r.Vocab)
}
