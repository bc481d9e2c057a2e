package arch

import "github.com/llmq/llmq/model"

// mixture is a mixture of experts chosen by sigmoids, in config.json.
type mixture struct {
	experts, used, ffn, shared, dense, groups, groupsUsed int
	scale                                                 float64
	normalize                                             bool
}

// readMixture reads a mixture; d are what the class takes for members that are not there.
func (c *Conversion) readMixture(r *Config, d mixture) *mixture {
	o := c.Config
	m := &mixture{}
	m.experts = o.Int(c.alias("n_routed_experts", "num_experts", "num_local_experts"), orRequired(d.experts), 1, maxWidth)
	m.used = o.Int("num_experts_per_tok", orRequired(d.used), 1, max(m.experts, 1))
	m.ffn = o.Int("moe_intermediate_size", d.ffn, 1, maxWidth)
	m.shared = o.Int(c.alias("n_shared_experts", "num_shared_experts"), d.shared, 0, maxWidth)
	m.dense = c.denseLayers(r.Layers, d.dense)
	m.groups, m.groupsUsed = o.Int("n_group", d.groups, 1, maxWidth), o.Int("topk_group", d.groupsUsed, 1, maxWidth)
	m.scale = o.Float("routed_scaling_factor", 1, 0, maxWidth)
	m.normalize = o.Bool("norm_topk_prob", d.normalize)
	c.wantSigmoid()
	return m
}

// wantSigmoid refuses a router that is configured to be another than the class has.
func (c *Conversion) wantSigmoid() {
	name := c.alias("scoring_func", "score_function", "score_func")
	if f := c.Config.String(name, "sigmoid"); f != "sigmoid" && c.Config.Err() == nil {
		c.Config.Fail(name, "is %q, %s takes sigmoid", f, c.Class)
	}
}

func (c *Conversion) setMixture(m *mixture) {
	c.SetExperts(m.experts, m.used, m.ffn)
	c.SetInt("expert_group_count", m.groups)
	c.SetInt("expert_group_used_count", m.groupsUsed)
	c.SetInt("leading_dense_block_count", m.dense)
	c.SetInt("expert_shared_count", m.shared)
	c.SetFloat("expert_weights_scale", m.scale)
	c.Set("expert_weights_norm", m.normalize)
	c.Set("expert_gating_func", gatings["sigmoid"])
}

// mixture declares layer i's MLP, or its experts.
func (l *Layer) mixture(i int, r *Config, m *mixture) {
	if i < m.dense {
		l.gatedMLP(r, false)
		return
	}
	if l.Has("mlp.gate.e_score_correction_bias") {
		l.Tensor("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", m.experts)
	}
	l.experts(r, m.experts, m.ffn)
	if m.shared > 0 {
		l.sharedExpert(r, "mlp.shared_experts", m.shared*m.ffn)
	}
}

// denseLayers is how many layers before the others have no experts.
func (c *Conversion) denseLayers(layers, absent int) int {
	o := c.Config
	dense := o.Int("first_k_dense_replace", absent, 0, maxLayers)
	if types := o.Strings("mlp_layer_types"); types != nil {
		for dense = 0; dense < len(types) && types[dense] == "dense"; dense++ {
		}
		for _, t := range types[dense:] {
			if t != "sparse" {
				c.Refuse("mlp_layer_types", "GGUF readers take dense layers before all others alone")
			}
		}
	}
	if o.Int("moe_layer_freq", 1, 1, maxLayers) != 1 {
		c.Refuse("moe_layer_freq", "GGUF readers take experts in all layers but the first")
	}
	return min(dense, layers)
}

// wantUndivided refuses heads that together have another width than the residual stream.
func (c *Conversion) wantUndivided(r *Config) {
	if c.Config.Err() == nil && r.Heads*r.HeadDim != r.Dim {
		c.Config.Fail("head_dim", "is %d: GGUF readers take hidden_size over num_attention_heads, %d over %d, for %s",
			r.HeadDim, r.Dim, r.Heads, c.Class)
	}
}

// sparseEverywhere refuses layers without experts.
func (c *Conversion) sparseEverywhere() {
	const why = "GGUF readers take experts in all layers"
	if c.Config.Int("decoder_sparse_step", 1, 0, maxLayers) != 1 {
		c.Refuse("decoder_sparse_step", why)
	}
	if len(c.Config.Ints("mlp_only_layers", 0, maxLayers)) > 0 {
		c.Refuse("mlp_only_layers", why)
	}
}

// gatedShared declares the expert of all tokens with its gate.
func (l *Layer) gatedShared(r *Config, ffn int) {
	l.Linear("ffn_gate_inp_shexp", "mlp.shared_expert_gate", 1, r.Dim, false)
	l.sharedExpert(r, "mlp.shared_expert", ffn)
}

// lateExperts is what the metadata say of experts that follow some dense layers.
type lateExperts struct {
	routing *routing
	dense   int // layers before the others have an MLP
	shared  int // the width of what all tokens reach; 0: nothing
}

func (h *hyper) readSigmoid(k *model.Keys) *lateExperts {
	h.dividedFFN(k)
	s := &lateExperts{routing: h.readRouting(k, model.GateSigmoid)}
	s.dense = k.Int("leading_dense_block_count", 0, 0, model.MaxLayers)
	s.shared = k.Int("expert_shared_count", -1, 0, model.MaxWidth) * k.Int("expert_shared_feed_forward_length", h.expertFFN, 0, model.MaxWidth)
	if s.shared > model.MaxWidth {
		k.Fail("expert_shared_count", "makes experts of %d features for all tokens", s.shared)
	}
	return s
}

// residual is the MLP of a dense layer, or the experts of another, behind a norm. bias says whether there is one for the
// choice.
func (s *lateExperts) residual(h *hyper, b *model.Loader, norm string, bias model.Presence) model.Residual {
	r := model.Residual{Pre: h.norm(b, norm)}
	if b.Layer() < s.dense {
		r.Branch = h.mlp(b, model.SiLU, model.Absent).Branch()
		return r
	}
	moe := h.moe(b)
	s.routing.apply(moe)
	moe.SelectionBias = b.Vector("exp_probs_b.bias", h.experts, bias)
	if s.shared > 0 {
		moe.Shared = h.mlpOf(b, "_shexp", s.shared, model.SiLU, model.Absent)
	}
	r.Branch = moe.Branch()
	return r
}

// dividedFFN is the experts' width where the metadata do not say: the MLP's, divided among those that a token reaches.
func (h *hyper) dividedFFN(k *model.Keys) {
	if !k.Has("expert_feed_forward_length") && h.expertsUsed > 0 {
		h.expertFFN = h.ffn / h.expertsUsed
	}
}

// gatedShared gives a mixture an expert for all tokens, whose output is multiplied by σ(ffn_gate_inp_shexp·x).
func (h *hyper) gatedShared(b *model.Loader, moe *model.MoE, ffn int) *model.MoE {
	moe.Shared = h.mlpOf(b, "_shexp", ffn, model.SiLU, model.Absent)
	moe.SharedGate = b.Row("ffn_gate_inp_shexp", h.dim)
	return moe
}
