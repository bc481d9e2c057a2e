package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// DeepSeek-V2 (arXiv:2405.04434), V3 (arXiv:2412.19437) and what is built like it: Kimi-K2, GLM-4.7-Flash. Latent
// attention, experts beside shared ones after some dense layers, and in V3 a sigmoid with a bias for the choice.
func init() {
	register(&Family{
		Name: "deepseek2",
		Classes: []string{"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Glm4MoeLiteForCausalLM",
			"KimiVLForConditionalGeneration", "KimiK25ForConditionalGeneration"},
		Convert: convertDeepseek,
		Spec:    specDeepseek,
	})
	tokenizes(&Tokenizer{Pre: "glm4", Tokens: []SpecialToken{{Kind: "bos", Content: "[gMASK]"}, {Kind: "unk", Content: "<|endoftext|>"},
		{Kind: "eot", Content: "<|user|>"}, {Kind: "eom", Content: "<|observation|>"}}}, "Glm4MoeLiteForCausalLM", "Glm4MoeForCausalLM",
		"Glm4vMoeForConditionalGeneration")
	// Of ranks: DeepSeek's own models have tokenizer.json.
	tokenizes(&Tokenizer{Pre: "kimi-k2"}, "DeepseekV3ForCausalLM", "KimiVLForConditionalGeneration", "KimiK25ForConditionalGeneration")
}

// deepseekDefaults are what the classes take for members that config.json does not have.
type deepseekDefaults struct {
	Defaults
	experts, used, shared, dense, expertFFN, qRank, groups, groupsUsed, nope, value int
	scale                                                                           float64
	normalize                                                                       bool
}

func deepseekDefaultsOf(class string) deepseekDefaults {
	switch class {
	case "DeepseekV2ForCausalLM":
		return deepseekDefaults{Defaults: Defaults{Context: 2048}, experts: 64, shared: 2, expertFFN: 1407, qRank: 1536,
			groups: 1, groupsUsed: 1, nope: 128, value: 128, scale: 1, used: -1}
	case "Glm4MoeLiteForCausalLM":
		return deepseekDefaults{Defaults: Defaults{Context: 202752, Eps: 1e-5}, experts: 64, used: 4, shared: 1, dense: 1,
			expertFFN: 1536, qRank: 768, groups: 1, groupsUsed: 1, nope: 192, value: 256, scale: 1.8, normalize: true}
	}
	return deepseekDefaults{Defaults: Defaults{Context: 4096}, experts: 256, used: 8, shared: 1, dense: 3, expertFFN: 2048,
		qRank: 1536, groups: 8, groupsUsed: 4, nope: 128, value: 128, scale: 2.5, normalize: true}
}

// latent are the members of config.json that say what latent attention is like.
type latent struct {
	qRank, rank, nope, rope, value int // qRank 0: queries are not projected down first
}

func convertDeepseek(c *Conversion) {
	d := deepseekDefaultsOf(c.Class)
	v2 := c.Class == "DeepseekV2ForCausalLM"
	o := c.Config
	d.HeadDim = 64
	r := c.Read(d.Defaults)
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	a := latent{rank: o.Int("kv_lora_rank", 512, 1, maxWidth), nope: o.Int("qk_nope_head_dim", d.nope, 1, maxWidth),
		rope: o.Int("qk_rope_head_dim", 64, 2, maxWidth), value: o.Int("v_head_dim", d.value, 1, maxWidth)}
	if o.Has("q_lora_rank") || !o.Present("q_lora_rank") { // null: none
		a.qRank = o.Int("q_lora_rank", d.qRank, 1, maxWidth)
	}
	r.HeadDim, r.KVHeads = a.rope, 1
	rope := c.readRoPE(r, ropeOptions{})
	c.wantLatentScaling(rope)
	experts := o.Int("n_routed_experts", d.experts, 1, maxWidth)
	used := o.Int("num_experts_per_tok", d.used, 1, max(experts, 1))
	shared := o.Int("n_shared_experts", d.shared, 1, maxWidth)
	ffn := o.Int("moe_intermediate_size", d.expertFFN, 1, maxWidth)
	dense := c.denseLayers(r.Layers, d.dense)
	groups, groupsUsed := o.Int("n_group", d.groups, 1, maxWidth), o.Int("topk_group", d.groupsUsed, 1, maxWidth)
	scale := o.Float("routed_scaling_factor", d.scale, 0, maxWidth)
	normalize := o.Bool("norm_topk_prob", d.normalize)
	c.wantDeepseekRouting(v2, groups, scale, normalize)
	if o.Bool("attention_bias", false) {
		c.Refuse("attention_bias", "GGUF readers know no biases in latent attention")
	}
	if !o.Bool("rope_interleave", true) {
		c.Refuse("rope_interleave", "GGUF readers rotate neighbours")
	}
	lite := r.Layers == 26 || r.Layers == 27 || r.Layers == 48 && r.Vocab == 128256
	if o.Err() == nil && lite != (a.qRank == 0) {
		o.Fail("q_lora_rank", "is %s with %d layers: GGUF readers take it that models of 26 and 27 layers have none, and others do",
			o.Excerpt("q_lora_rank"), r.Layers)
	}
	if o.Err() != nil {
		return
	}
	if normEps := 1e-6; r.Eps != normEps && c.Class != "DeepseekV2ForCausalLM" {
		c.Warn("%s: rms_norm_eps is %g; the norms inside of attention have %g, GGUF readers take the former for all", o.File, r.Eps, normEps)
	}
	c.SetBase(r, rope)
	c.SetInt("leading_dense_block_count", dense)
	c.SetInt("vocab_size", r.Vocab)
	if a.qRank > 0 {
		c.SetInt("attention.q_lora_rank", a.qRank)
	}
	c.SetInt("attention.head_count_kv", 1)
	c.SetInt("attention.kv_lora_rank", a.rank)
	c.SetInt("attention.key_length", a.rank+a.rope)
	c.SetInt("attention.value_length", a.rank)
	c.SetInt("attention.key_length_mla", a.nope+a.rope)
	c.SetInt("attention.value_length_mla", a.value)
	c.SetExperts(experts, used, ffn)
	c.SetInt("expert_shared_count", shared)
	c.SetInt("expert_group_count", groups)
	c.SetInt("expert_group_used_count", groupsUsed)
	c.SetFloat("expert_weights_scale", scale)
	if normalize {
		c.Set("expert_weights_norm", true)
	}
	c.Set("expert_gating_func", gatings[map[bool]string{true: "softmax", false: "sigmoid"}[v2]])
	c.SetInt("rope.dimension_count", a.rope)
	if s := rope.scaling; s != nil && s.Has("mscale_all_dim") {
		c.SetFloat("rope.scaling.yarn_log_multiplier", 0.1*s.Float("mscale_all_dim", 0, 0, maxWidth))
	}
	further := 0
	if c.Class == "Glm4MoeLiteForCausalLM" {
		if further = c.nextn(r); further > 0 {
			c.setNextn(r, further)
		}
	} else {
		c.SkipLayers(r.Layers, o.Int(nextnKey, 0, 0, maxLayers))
	}
	c.Embeddings(r)
	for i := range r.Layers + further {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.latentAttention(r, &a)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if i >= r.Layers {
			l.nextn(r)
		}
		if i < dense {
			l.gatedMLP(r, false)
			continue
		}
		l.Linear("ffn_gate_inp", "mlp.gate", experts, r.Dim, false)
		if !v2 {
			l.Tensor("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", experts)
		}
		l.Experts("ffn_gate_exps", "mlp.experts.%d.gate_proj", experts, ffn, r.Dim)
		l.Experts("ffn_up_exps", "mlp.experts.%d.up_proj", experts, ffn, r.Dim)
		l.Experts("ffn_down_exps", "mlp.experts.%d.down_proj", experts, r.Dim, ffn)
		l.Linear("ffn_gate_shexp", "mlp.shared_experts.gate_proj", shared*ffn, r.Dim, false)
		l.Linear("ffn_up_shexp", "mlp.shared_experts.up_proj", shared*ffn, r.Dim, false)
		l.Linear("ffn_down_shexp", "mlp.shared_experts.down_proj", r.Dim, shared*ffn, false)
	}
	c.Head(r)
}

// wantLatentScaling refuses scalings of RoPE other than the one that readers know with latent attention: YaRN, with
// scores multiplied by the square of 1+0.1·mscale_all_dim·ln(factor) and rotated elements by 1.
func (c *Conversion) wantLatentScaling(e *rope) {
	if e.scaling == nil || c.Config.Err() != nil {
		return
	}
	s := e.scaling
	switch e.kind {
	case "default":
	case "yarn":
		all := s.Float("mscale_all_dim", math.NaN(), 0, maxWidth)
		if one := e.magnitude * (1 + 0.1*math.Log(max(1, e.factor))); math.Abs(one-1) > 1e-6 {
			s.Fail("mscale", "and mscale_all_dim, %g, make a factor of %g on rotated elements: GGUF readers take 1 with latent attention", all, one)
		}
		e.magnitude = 1
	default:
		s.Fail("rope_type", "is %q; supported for %s: default, yarn", e.kind, c.Class)
	}
}

// wantDeepseekRouting refuses what readers do otherwise than the class.
func (c *Conversion) wantDeepseekRouting(v2 bool, groups int, scale float64, normalize bool) {
	o := c.Config
	want := "sigmoid"
	if v2 {
		want = "softmax"
		if groups > 1 {
			c.Refuse("n_group", "GGUF readers choose groups by their two best experts, DeepSeek-V2 by the best")
		}
		if normalize && scale != 1 {
			c.Refuse("norm_topk_prob", "GGUF readers multiply by routed_scaling_factor too, DeepSeek-V2 does one of the two")
		}
	}
	if got := o.String(c.alias("scoring_func", "score_function"), want); got != want && o.Err() == nil {
		o.Fail("scoring_func", "is %q, the class takes %q", got, want)
	}
	for _, known := range []string{"greedy", "group_limited_greedy", "noaux_tc"} {
		if o.String("topk_method", known) == known {
			return
		}
	}
	c.Refuse("topk_method", "supported: greedy, group_limited_greedy, noaux_tc")
}

// latentAttention declares latent attention. kv_b_proj has, for each head, nope rows of keys, which are absorbed into
// queries and therefore transposed, and then rows of values.
func (l *Layer) latentAttention(r *Config, a *latent) {
	q := r.Heads * (a.nope + a.rope)
	if a.qRank > 0 {
		l.Linear("attn_q_a", "self_attn.q_a_proj", a.qRank, r.Dim, false)
		l.Norm("attn_q_a_norm", "self_attn.q_a_layernorm", a.qRank)
		l.Linear("attn_q_b", "self_attn.q_b_proj", q, a.qRank, false)
	} else {
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, false)
	}
	l.Linear("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", a.rank+a.rope, r.Dim, false)
	l.Norm("attn_kv_a_norm", "self_attn.kv_a_layernorm", a.rank)
	const from = "self_attn.kv_b_proj.weight"
	each := a.nope + a.value
	keys, values := l.c.part(l.hf+from, r.Heads*each, a.rank), l.c.part(l.hf+from, r.Heads*each, a.rank)
	keys.Count, keys.Transposed, keys.In, keys.Out = r.Heads*a.rank, true, each, a.rank
	k := l.c.add(l.gguf+"attn_k_b.weight", []int{r.Heads, a.rank, a.nope}, keys)
	k.Columns = make([]int, a.nope)
	for i := range k.Columns {
		k.Columns[i] = i
	}
	values.Count = r.Heads * a.value
	values.Row = func(r int) int { return r/a.value*each + a.nope + r%a.value }
	l.c.add(l.gguf+"attn_v_b.weight", []int{r.Heads, a.value, a.rank}, values)
	l.Linear("attn_output", "self_attn.o_proj", r.Dim, r.Heads*a.value, false)
}

func specDeepseek(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEPairs)
	qRank := k.Int("attention.q_lora_rank", 0, 0, model.MaxWidth)
	rank := k.Int("attention.kv_lora_rank", -1, 1, model.MaxWidth)
	key := k.Int("attention.key_length_mla", -1, 1, model.MaxWidth)
	value := k.Int("attention.value_length_mla", -1, 1, model.MaxWidth)
	turned := h.rope.Dims
	if k.Err() == nil && key <= turned {
		k.Fail("attention.key_length_mla", "is %d, want more than rope.dimension_count, %d", key, turned)
	}
	dense := k.Int("leading_dense_block_count", 0, 0, model.MaxLayers)
	shared := k.Int("expert_shared_count", -1, 1, model.MaxWidth)
	gating := model.GateSoftmax
	if (h.layers == 47 || h.layers == 48) && h.vocab == 154880 { // files of GLM-4.7-Flash that do not say
		gating = model.GateSigmoid
	}
	h.dropNextn(k)
	mlp := &lateExperts{routing: h.readRouting(k, gating), dense: dense, shared: shared * h.expertFFN}
	if k.Has("attention.temperature_scale") {
		k.Fail("attention.temperature_scale", "is not supported with latent attention")
	}
	scale := h.latentScale(k, key)
	return h.spec(func(b *model.Loader, i int) {
		heads := max(h.heads, 1)
		a := &model.MLA{Heads: heads, Nope: key - turned, Rope: turned, Rank: rank, ValueDim: value, RoPE: h.rope, Scale: scale}
		norm := h.norm(b, "attn_norm")
		if qRank > 0 {
			a.QA = b.Linear("attn_q_a", qRank, h.dim, model.Absent)
			a.QNorm = b.Norm("attn_q_a_norm", qRank, h.eps)
			a.QB = b.Linear("attn_q_b", heads*key, qRank, model.Absent)
		} else {
			a.Q = b.Linear("attn_q", heads*key, h.dim, model.Absent)
		}
		a.KVA, a.KVNorm = b.Linear("attn_kv_a_mqa", rank+turned, h.dim, model.Absent), b.Norm("attn_kv_a_norm", rank, h.eps)
		a.KB = b.Heads("attn_k_b", heads, rank, a.Nope)
		a.VB = b.Heads("attn_v_b", heads, value, rank)
		a.O = b.Linear("attn_output", h.dim, heads*value, model.Absent)
		b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
		b.Residual(mlp.residual(h, b, "ffn_norm", model.Optional))
	})
}

// latentScale is the factor on the scores of keys of dim features. YaRN's factor on rotated elements is taken back where
// the metadata have a multiplier, which then goes to the scores instead.
func (h *hyper) latentScale(k *model.Keys, dim int) float32 {
	log := math.Log(max(1, h.rope.Factor))
	scale := h.rope.AttnFactor
	switch multiplier := k.Float("rope.scaling.yarn_log_multiplier", 0, -1, model.MaxWidth); {
	case h.rope.Scaling != "yarn":
	case multiplier != 0:
		h.rope.AttnFactor /= 1 + 0.1*log
		scale *= 1 + multiplier*log
	default:
		scale *= 1 + 0.1*log
	}
	return float32(scale * scale / math.Sqrt(float64(max(dim, 1))))
}
