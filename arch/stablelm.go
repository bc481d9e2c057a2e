package arch

import (
	"fmt"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// StableLM (Bellagente et al., arXiv:2402.17834): Llama with LayerNorm and RoPE on part of a head; in StableLM 2 12B
// attention is beside the MLP, and each head of q and k has a LayerNorm of its own.
func init() {
	register(&Family{Name: "stablelm", Classes: []string{"StableLmForCausalLM", "StableLMEpochForCausalLM"}, Convert: convertStableLM,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				a, mlp := h.jointAttention(b, model.Optional, model.Absent), h.mlp(b, model.SiLU, model.Absent)
				h.headLayerNorms(b, a)
				if b.Has("ffn_norm.weight") { // as readers tell
					h.sequential(b, a, mlp)
					return
				}
				norm := h.norm(b, "attn_norm")
				parallel(b, norm, a, norm, mlp)
			})
		},
	})
	tokenizes(&Tokenizer{Pre: "stablelm2"}, "StableLmForCausalLM")
}

func convertStableLM(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, Vocab: 50304, Context: 4096, Eps: 1e-5})
	r.LayerNorm = true
	o := c.Config
	r.FFN = o.Int("intermediate_size", 6912, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: o.Float(c.alias("rope_pct", "partial_rotary_factor"), 0.25, 0, 1)})
	c.wantHeadDim(r)
	bias, norms, parallel := o.Bool("use_qkv_bias", false), o.Bool("qk_layernorm", false), o.Bool("use_parallel_residual", false)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	c.SetInt("rope.dimension_count", rope.dims)
	c.setUnusualRoPE(rope)
	c.Set("use_parallel_residual", parallel)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.BiasedNorm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, bias, false)
		if norms {
			l.stackedNorms("attn_q_norm", "self_attn.q_layernorm", r.Heads, r.HeadDim)
			l.stackedNorms("attn_k_norm", "self_attn.k_layernorm", r.KVHeads, r.HeadDim)
		}
		if !parallel {
			l.BiasedNorm("ffn_norm", "post_attention_layernorm", r.Dim)
		}
		l.gatedMLP(r, false)
	}
	c.finalNorm("model.norm", r.Dim)
	c.untiedOutput(r, headName)
}

// stackedNorms declares the weights of n norms, which the checkpoint has one by one, as one tensor.
func (l *Layer) stackedNorms(name, from string, n, dim int) {
	parts := make([]Part, n)
	for i := range parts {
		parts[i] = l.c.part(l.hf+fmt.Sprintf("%s.norms.%d.weight", from, i), dim)
	}
	l.c.add(l.gguf+name+".weight", []int{n, dim}, parts...)
}
