package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Ling 2 and Ring 2 (inclusionAI, arXiv:2510.22115): q, k and v in one, norms of heads, rotation of half a head, and experts
// in groups, chosen by sigmoids, after some dense layers.
func init() {
	register(&Family{Name: "bailingmoe2", Classes: []string{"BailingMoeV2ForCausalLM"}, Convert: convertBailing2,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			s := h.readSigmoid(k)
			h.dropNextn(k)
			return h.spec(func(b *model.Loader, i int) {
				norm := h.norm(b, "attn_norm")
				a := h.attention(b, model.Absent, model.Absent)
				h.headNorms(b, a)
				b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
				b.Residual(s.residual(h, b, "ffn_norm", model.Optional))
			})
		}})
	tokenizes(&Tokenizer{Pre: "bailingmoe2"}, "BailingMoeV2ForCausalLM")
}

func convertBailing2(c *Conversion) {
	r := c.Read(Defaults{Context: 32768, KVHeads: 4, Theta: 600000})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 5120, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: 0.5})
	m := c.readMixture(r, mixture{experts: 256, used: 8, ffn: 512, shared: 1, groups: 8, groupsUsed: 4, normalize: true})
	each := o.Int("moe_shared_expert_intermediate_size", m.ffn, 1, maxWidth)
	for _, key := range []string{"use_qkv_bias", "use_bias"} {
		if o.Bool(key, false) {
			c.Refuse(key, "GGUF readers know no biases of this architecture")
		}
	}
	if !o.Bool("use_qk_norm", true) {
		c.Refuse("use_qk_norm", "GGUF readers demand norms of heads")
	}
	if !m.normalize {
		c.Refuse("norm_topk_prob", "the class divides the weights of a token's experts by their sum in any case")
	}
	if o.Err() == nil && m.shared == 0 {
		c.Refuse("num_shared_experts", "GGUF readers demand a shared expert")
	}
	bias := o.Bool("moe_router_enable_expert_bias", true)
	further := c.nextn(r)
	c.wantUndivided(r)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("rope.dimension_count", rope.dims)
	c.SetInt("vocab_size", r.Vocab)
	c.setMixture(m)
	c.SetInt("expert_shared_feed_forward_length", each) // readers multiply by the experts
	c.setNextn(r, further)
	c.EmbeddingsFrom("model.word_embeddings.weight", r)
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	for i := range r.Layers + further {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.Linear("attn_qkv", "attention.query_key_value", q+2*kv, r.Dim, false)
		l.Norm("attn_q_norm", "attention.query_layernorm", r.HeadDim)
		l.Norm("attn_k_norm", "attention.key_layernorm", r.HeadDim)
		l.Linear("attn_output", "attention.dense", r.Dim, q, false)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if i >= r.Layers {
			l.nextn(r)
			l.Norm("layer_output_norm", "final_layernorm", r.Dim)
		}
		if i < m.dense {
			l.gatedMLP(r, false)
			continue
		}
		if bias {
			l.Tensor("exp_probs_b.bias", "mlp.gate.expert_bias", m.experts)
		}
		l.experts(r, m.experts, m.ffn)
		l.sharedExpert(r, "mlp.shared_experts", m.shared*each)
	}
	c.OwnHead(r)
}
