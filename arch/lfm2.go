package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// LFM2 and its mixture (arXiv:2511.23404): most layers have short convolutions in the place of attention; the final norm is
// called that of the embeddings. The mixture's experts are chosen by a sigmoid with a bias.
func init() {
	register(&Family{Name: "lfm2", Classes: []string{"Lfm2ForCausalLM", "LFM2ForCausalLM"},
		Convert: func(c *Conversion) { convertLFM2(c, false) },
		Spec: func(k *model.Keys) *model.Spec {
			return specLFM2(k, readHyper(k, elementwise.RoPEHalves, kvHeadsKey).dense(k))
		}})
	register(&Family{Name: "lfm2moe", Classes: []string{"Lfm2MoeForCausalLM"},
		Convert: func(c *Conversion) { convertLFM2(c, true) },
		Spec:    func(k *model.Keys) *model.Spec { return specLFM2(k, readHyper(k, elementwise.RoPEHalves, kvHeadsKey)) }})
	tokenizes(&Tokenizer{Pre: "lfm2"}, "Lfm2ForCausalLM", "Lfm2MoeForCausalLM")
}

func convertLFM2(c *Conversion, mixture bool) {
	d := Defaults{Context: 128000, Eps: 1e-5, KVHeads: 8, Theta: 1e6, Tied: true}
	r := c.Read(d)
	o := c.Config
	if o.Has("tie_embedding") {
		r.Tied = o.Bool("tie_embedding", true)
	}
	rope := c.readRoPE(r, ropeOptions{})
	width := o.Int("conv_L_cache", 3, 2, maxWidth)
	if o.Bool("conv_bias", false) {
		c.Refuse("conv_bias", "GGUF readers know no biases of convolutions here")
	}
	full := c.lfm2Attention(r.Layers)
	experts, used, ffn, dense := 0, 0, 0, r.Layers
	if mixture {
		r.FFN = o.Int("intermediate_size", 7168, 1, maxWidth)
		experts = o.Int("num_experts", 32, 1, maxWidth)
		used = o.Int("num_experts_per_tok", 4, 1, max(experts, 1))
		ffn = o.Int("moe_intermediate_size", 1792, 1, maxWidth)
		dense = min(o.Int("num_dense_layers", 2, 0, maxLayers), r.Layers)
		if !o.Bool("norm_topk_prob", true) {
			c.Refuse("norm_topk_prob", "GGUF readers divide the weights of a token's experts by their sum")
		}
		if o.Float("routed_scaling_factor", 1, 0, maxWidth) != 1 {
			c.Refuse("routed_scaling_factor", "GGUF readers do not multiply by it")
		}
	} else {
		r.FFN = c.lfm2FFN()
	}
	biased := mixture && o.Bool("use_expert_bias", true)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	kv := make([]int32, r.Layers)
	for i := range kv {
		if full[i] {
			kv[i] = int32(r.KVHeads)
		}
	}
	c.Set("attention.head_count_kv", kv)
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("shortconv.l_cache", width)
	if mixture {
		c.SetExperts(experts, used, ffn)
		c.SetInt("leading_dense_block_count", dense)
		c.Set("expert_gating_func", gatings["sigmoid"])
	}
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "operator_norm", r.Dim)
		if full[i] {
			q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
			l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, false)
			l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, false)
			l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, false)
			l.Norm("attn_q_norm", "self_attn.q_layernorm", r.HeadDim)
			l.Norm("attn_k_norm", "self_attn.k_layernorm", r.HeadDim)
			l.Linear("attn_output", "self_attn.out_proj", r.Dim, q, false)
		} else {
			l.Linear("shortconv.in_proj", "conv.in_proj", 3*r.Dim, r.Dim, false)
			l.Taps("shortconv.conv.weight", "conv.conv.weight", r.Dim, width)
			l.Linear("shortconv.out_proj", "conv.out_proj", r.Dim, r.Dim, false)
		}
		l.Norm("ffn_norm", "ffn_norm", r.Dim)
		if i < dense {
			l.Linear("ffn_gate", "feed_forward.w1", r.FFN, r.Dim, false)
			l.Linear("ffn_up", "feed_forward.w3", r.FFN, r.Dim, false)
			l.Linear("ffn_down", "feed_forward.w2", r.Dim, r.FFN, false)
			continue
		}
		l.Linear("ffn_gate_inp", "feed_forward.gate", experts, r.Dim, false)
		if biased {
			l.Tensor("exp_probs_b.bias", "feed_forward.expert_bias", experts)
		} else { // readers want it
			c.Values(l.gguf+"exp_probs_b.bias", make([]float32, experts))
		}
		l.Experts("ffn_gate_exps", "feed_forward.experts.%d.w1", experts, ffn, r.Dim)
		l.Experts("ffn_up_exps", "feed_forward.experts.%d.w3", experts, ffn, r.Dim)
		l.Experts("ffn_down_exps", "feed_forward.experts.%d.w2", experts, r.Dim, ffn)
	}
	c.Tensor("token_embd_norm.weight", "model.embedding_norm.weight", r.Dim)
	c.Output(r, headName)
}

// lfm2Attention says which layers have attention: those that layer_types names or, without it, full_attn_idxs, or all.
func (c *Conversion) lfm2Attention(layers int) []bool {
	o := c.Config
	full := make([]bool, layers)
	indices, types := o.Ints("full_attn_idxs", 0, maxLayers), o.Strings("layer_types")
	if types != nil && len(types) < layers {
		o.Fail("layer_types", "has %d elements, want %d, one for each layer", len(types), layers)
		return full
	}
	for i := range full {
		switch {
		case types == nil && indices == nil:
			full[i] = true
		case types == nil:
		case types[i] == "full_attention":
			full[i] = true
		case types[i] != "conv":
			o.Fail("layer_types", "has %.64q; supported for %s: full_attention, conv", types[i], c.Class)
		}
	}
	for _, i := range indices {
		if types == nil && i < layers {
			full[i] = true
		}
	}
	return full
}

// lfm2FFN is the width of the MLP, which the class makes of another one.
func (c *Conversion) lfm2FFN() int {
	o := c.Config
	n := o.Int(c.alias("block_ff_dim", "intermediate_size"), 12288, 1, maxWidth)
	o.Int("intermediate_size", n, 1, maxWidth)
	multiplier := o.Float("block_ffn_dim_multiplier", 1, 0, maxWidth)
	if o.Present("block_ffn_dim_multiplier") && !o.Has("block_ffn_dim_multiplier") {
		multiplier = 1
	}
	multiple := o.Int("block_multiple_of", 256, 1, maxWidth)
	if !o.Bool("block_auto_adjust_ff_dim", true) || o.Err() != nil {
		return n
	}
	n = int(multiplier * float64(2*n/3))
	return multiple * ((n + multiple - 1) / multiple)
}

func specLFM2(k *model.Keys, h *hyper) *model.Spec {
	kv := h.readKVHeads(k)
	width := k.Int("shortconv.l_cache", -1, 2, model.MaxWidth)
	mlp := &lateExperts{dense: h.layers}
	if h.experts > 0 {
		mlp.dense = k.Int("leading_dense_block_count", 0, 0, model.MaxLayers)
		k.Int("expert_gating_func", -1, 1, 4)
		mlp.routing = h.readRouting(k, model.GateSigmoid)
		mlp.routing.normalize, mlp.routing.scale, mlp.routing.groups = true, 0, 0
	}
	spec := h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		if kv[i] > 0 {
			at := h.withKVHeads(kv[i])
			a := at.attention(b, model.Optional, model.Absent)
			at.headNorms(b, a)
			b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
		} else {
			s := &model.ShortConv{In: b.Linear("shortconv.in_proj", 3*h.dim, h.dim, model.Absent), Width: width,
				Taps: b.Values("shortconv.conv.weight", model.RoleKept, model.Required, h.dim, width),
				Out:  b.Linear("shortconv.out_proj", h.dim, h.dim, model.Absent)}
			b.Residual(model.Residual{Pre: norm, Branch: s.Branch()})
		}
		b.Residual(mlp.residual(h, b, "ffn_norm", model.Required))
	})
	spec.Outer = func(b *model.Loader) model.Ends { return model.Ends{Norm: h.norm(b, "token_embd_norm")} }
	return spec
}
