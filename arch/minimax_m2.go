package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// MiniMax-M2 (MiniMax, github.com/MiniMax-AI/MiniMax-M2): queries and keys normalised over their full width and rotated in
// part, and experts chosen by sigmoids with a bias, under Mixtral's names.
func init() {
	register(&Family{Name: "minimax-m2", Classes: []string{"MiniMaxM2ForCausalLM"}, Convert: convertMiniMaxM2,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			h.expertFFN = h.ffn // readers ask for no other
			routing := h.readRouting(k, model.GateSigmoid)
			return h.spec(func(b *model.Loader, i int) {
				norm := h.norm(b, "attn_norm")
				a := h.attention(b, model.Optional, model.Absent)
				h.wideNorms(b, a)
				b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
				norm = h.norm(b, "ffn_norm")
				moe := h.moe(b)
				routing.apply(moe)
				moe.Normalize = true
				moe.SelectionBias = b.Vector("exp_probs_b.bias", h.experts, model.Required)
				b.Residual(model.Residual{Pre: norm, Branch: moe.Branch()})
			})
		}})
	tokenizes(&Tokenizer{Pre: "minimax-m2"}, "MiniMaxM2ForCausalLM")
}

func convertMiniMaxM2(c *Conversion) {
	r := c.Read(Defaults{Context: 196608, KVHeads: 8, HeadDim: 128, Theta: 5e6})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 1536, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true})
	if o.Has("rotary_dim") {
		rope.dims = o.Int("rotary_dim", 0, 2, max(r.HeadDim, 2))
	} else if rope.dims == r.HeadDim {
		rope.dims = min(64, r.HeadDim)
	}
	experts := o.Int("num_local_experts", 256, 1, maxWidth)
	used := o.Int("num_experts_per_tok", 8, 1, max(experts, 1))
	c.wantSigmoid()
	if !o.Bool("use_routing_bias", true) {
		c.Refuse("use_routing_bias", "GGUF readers demand a bias for the choice of experts")
	}
	if !o.Bool("use_qk_norm", true) || o.String("qk_norm_type", "per_layer") != "per_layer" {
		c.Refuse("use_qk_norm", "GGUF readers normalise all heads of queries, and of keys, at once")
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetExperts(experts, used, r.FFN)
	c.Set("expert_gating_func", gatings["sigmoid"])
	c.SetInt("rope.dimension_count", rope.dims)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, false, false)
		l.wideNorms(r)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.Tensor("exp_probs_b.bias", "block_sparse_moe.e_score_correction_bias", experts)
		l.mixtralExperts(r, experts)
	}
	c.OwnHead(r)
}
