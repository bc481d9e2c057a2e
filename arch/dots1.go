package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// dots.llm1 (rednote-hilab, arXiv:2506.05767) and GLM-4.5 (Zhipu AI, arXiv:2508.06471): attention with norms of heads, and
// DeepSeek-V3's experts, chosen by sigmoids with a bias, beside shared ones, after some dense layers.
func init() {
	register(&Family{Name: "dots1", Classes: []string{"Dots1ForCausalLM"}, Convert: convertDots1,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			s := h.readSigmoid(k)
			return h.spec(func(b *model.Loader, i int) {
				b.Residual(h.qwen3Attention(b))
				b.Residual(s.residual(h, b, "ffn_norm", model.Optional))
			})
		}})
	register(&Family{Name: "glm4moe", Classes: []string{"Glm4MoeForCausalLM", "Glm4vMoeForConditionalGeneration"}, Convert: convertGLM4MoE,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			s := h.readSigmoid(k)
			h.dropNextn(k)
			return h.spec(func(b *model.Loader, i int) {
				norm := h.norm(b, "attn_norm")
				a := h.attention(b, model.Optional, model.Absent)
				a.QNorm, a.KNorm = b.OptionalNorm("attn_q_norm", h.headDim, h.eps), b.OptionalNorm("attn_k_norm", h.headDim, h.eps)
				b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
				b.Residual(s.residual(h, b, "post_attention_norm", model.Required))
			})
		}})
}

// sigmoidExperts is what the metadata say of experts that sigmoids choose.
type sigmoidExperts struct {
	routing *routing
	dense   int // layers before the others have an MLP
	shared  int // the width of what all tokens reach; 0: nothing
}

func (h *hyper) readSigmoid(k *model.Keys) *sigmoidExperts {
	h.dividedFFN(k)
	s := &sigmoidExperts{routing: h.readRouting(k, model.GateSigmoid)}
	s.dense = k.Int("leading_dense_block_count", 0, 0, model.MaxLayers)
	s.shared = k.Int("expert_shared_count", -1, 0, model.MaxWidth) * k.Int("expert_shared_feed_forward_length", h.expertFFN, 0, model.MaxWidth)
	if s.shared > model.MaxWidth {
		k.Fail("expert_shared_count", "makes experts of %d features for all tokens", s.shared)
	}
	return s
}

// residual is the MLP of a dense layer, or the experts of another, behind a norm. bias says whether there is one for the
// choice.
func (s *sigmoidExperts) residual(h *hyper, b *model.Loader, norm string, bias model.Presence) model.Residual {
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

func convertDots1(c *Conversion) {
	r := c.Read(Defaults{Context: 2048})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 10944, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	m := c.readMixture(r, mixture{ffn: 1408, groups: 1, groupsUsed: 1})
	if o.Bool("attention_bias", false) {
		c.Refuse("attention_bias", "GGUF readers know no bias of this attention's output")
	}
	if r.KVHeads != r.Heads && o.Err() == nil {
		c.Refuse("num_key_value_heads", "GGUF readers take as many heads of keys as of queries")
	}
	c.refuseWindow(r, 4096, 62)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.setMixture(m)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.qwenAttention(r, true)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.mixture(i, r, m)
	}
	c.OwnHead(r)
}

// refuseWindow refuses layers with a window that matters, of those that layer_types names or that are not the first. GGUF
// readers of the architecture know none.
func (c *Conversion) refuseWindow(r *Config, absent, absentFirst int) {
	o := c.Config
	first := o.Int("max_window_layers", absentFirst, 0, maxLayers)
	types := c.LayerTypes(r.Layers)
	if o.Present("sliding_window") && !o.Has("sliding_window") {
		return
	}
	window := o.Int("sliding_window", absent, 1, maxContext)
	for i := range r.Layers {
		if (types != nil && types[i] == "sliding_attention" || types == nil && i >= first) && window < r.Context && o.Err() == nil {
			o.Fail("sliding_window", "is %d in layer %d: GGUF readers know no windows for %s", window, i, c.Class)
		}
	}
}

func convertGLM4MoE(c *Conversion) {
	r := c.Read(Defaults{Context: 131072, Eps: 1e-5, KVHeads: 8})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 10944, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: 0.5})
	m := c.readMixture(r, mixture{experts: 128, used: 8, ffn: 1408, shared: 1, dense: 1, groups: 1, groupsUsed: 1, normalize: true})
	bias, headNorms := o.Bool("attention_bias", false), o.Bool("use_qk_norm", false)
	further := c.nextn(r)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("rope.dimension_count", rope.dims)
	c.setMixture(m)
	c.setNextn(r, further)
	c.Embeddings(r)
	for i := range r.Layers + further {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, bias, false)
		if headNorms {
			l.headNorms(r)
		}
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim)
		l.mixture(i, r, m)
		if i >= r.Layers {
			l.nextn(r)
		}
	}
	c.Head(r)
}
