package arch

import (
	"fmt"
	"math"
	"slices"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/model"
)

// Nemotron-H (arXiv:2504.03624) and Nemotron 3: each layer is a norm and one mixer: Mamba-2, attention without RoPE, an MLP
// with a squared ReLU and no gate or, in the mixture, experts of that kind beside a shared one, chosen by a sigmoid with
// a bias.
func init() {
	for _, mixture := range []bool{false, true} {
		name := "nemotron_h"
		if mixture {
			name = "nemotron_h_moe"
		}
		register(&Family{Name: name, Classes: []string{"NemotronHForCausalLM"},
			Takes:   func(o *object.Object) bool { return slices.Contains(nemotronMixers(o), "moe") == mixture },
			Convert: convertNemotronH, Spec: specNemotronH})
	}
}

// nemotronMixers lists the layers' mixers: mamba, attention, mlp or moe, and what else config.json says.
func nemotronMixers(o *object.Object) []string {
	names := map[string]string{"linear_attention": "mamba", "full_attention": "attention",
		"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
	list := o.Strings("layers_block_type")
	if list == nil {
		for _, letter := range o.String("hybrid_override_pattern", "") {
			list = append(list, string(letter))
		}
	}
	mixers := slices.Clone(list)
	for i, m := range mixers {
		if name := names[m]; name != "" {
			mixers[i] = name
		}
	}
	return mixers
}

func convertNemotronH(c *Conversion) {
	o := c.Config
	mixers := nemotronMixers(o)
	r := c.Read(Defaults{Layers: len(mixers), Context: 4096, Eps: 1e-5, HeadDim: 128, KVHeads: 8})
	r.LayerNorm = true // by name: its key in GGUF is LayerNorm's
	r.HeadDim = o.Int(c.alias("head_dim", "attention_head_dim"), 128, 1, maxWidth)
	o.String("hidden_act", "")
	s := stateSpace{heads: o.Int("mamba_num_heads", 128, 1, maxWidth), groups: o.Int(c.alias("n_groups", "mamba_n_groups"), 8, 1, maxWidth),
		state: o.Int(c.alias("ssm_state_size", "mamba_d_state"), 128, 1, maxWidth), width: o.Int(c.alias("conv_kernel", "mamba_d_conv"), 4, 1, maxWidth)}
	s.inner = s.heads * o.Int("mamba_head_dim", 64, 1, maxWidth)
	if what := s.valid(); what != "" && o.Err() == nil {
		o.Fail("mamba_num_heads", "%d: %d features %s (%d groups)", s.heads, s.inner, what, s.groups)
	}
	ffn := o.Int("intermediate_size", 21504, 1, maxWidth)
	if o.Err() == nil && len(mixers) != r.Layers {
		o.Fail("hybrid_override_pattern", "has %d layers, num_hidden_layers is %d", len(mixers), r.Layers)
	}
	c.wantTimeSteps("time_step_limit")
	c.wantNemotronParts()
	bias, mlpBias, convBias := o.Bool("attention_bias", false), o.Bool("mlp_bias", false), o.Bool("use_conv_bias", true)
	var experts, used, sharedFFN int
	mixture := c.Family.Name == "nemotron_h_moe"
	if mixture {
		ffn = o.Int("moe_intermediate_size", 7688, 1, maxWidth)
		experts = o.Int("n_routed_experts", 8, 1, maxWidth)
		used = o.Int("num_experts_per_tok", 2, 1, max(experts, 1))
		sharedFFN = o.Int("moe_shared_expert_intermediate_size", 7688, 1, maxWidth)
		if o.Has("moe_latent_size") {
			c.Refuse("moe_latent_size", "experts in a narrower space are not supported")
		}
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	theta := o.Float("rope_theta", 10000, 0, math.MaxFloat32)
	c.SetFloat("rope.freq_base", theta)
	c.SetInt("context_length", 1<<20) // what nothing but the state space bounds
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", r.Dim/r.Heads)
	c.Set("rope.scaling.finetuned", false)
	c.setHeadDim(r)
	c.setStateSpace(&s)
	further := c.nemotronMTP(mixture)
	kv, wide := make([]int32, r.Layers+further), make([]int32, r.Layers+further)
	if further > 0 { // attention, and experts behind it
		kv[r.Layers], wide[r.Layers] = int32(r.KVHeads), int32(ffn)
		c.setNextn(r, further)
	}
	for i, m := range mixers {
		switch {
		case m == "attention":
			kv[i] = int32(r.KVHeads)
		case m == "moe" || m == "mlp" && !mixture:
			wide[i] = int32(ffn)
		case m != "mamba":
			o.Fail("hybrid_override_pattern", "has %.64q: GGUF readers of %s do not know it", m, c.Family.Name)
			return
		}
	}
	c.Set("attention.head_count_kv", kv)
	c.Set("feed_forward_length", wide)
	if mixture {
		c.SetExperts(experts, used, ffn)
		c.SetInt("expert_shared_feed_forward_length", sharedFFN)
		c.SetInt("expert_shared_count", o.Int("n_shared_experts", 1, 1, maxWidth))
		c.Set("expert_weights_norm", o.Bool("norm_topk_prob", true))
		c.SetFloat("expert_weights_scale", o.Float("routed_scaling_factor", 1, 0, maxWidth))
		c.SetInt("expert_group_count", o.Int("n_group", 1, 1, maxWidth))
		c.SetInt("expert_group_used_count", o.Int("topk_group", 1, 1, maxWidth))
	}
	root := "backbone." // which transformers 5 calls model
	if !c.Has(root + "norm_f.weight") {
		root = "model."
	}
	c.EmbeddingsFrom(root+"embeddings.weight", r)
	q, k := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	mixer := func(l *Layer, m string) {
		switch m {
		case "mamba":
			l.mamba2("mixer.", r, &s, convBias, true)
		case "attention":
			l.Linear("attn_q", "mixer.q_proj", q, r.Dim, bias).Permute(r.HeadDim, r.HeadDim) // as llama.cpp has it
			l.Linear("attn_k", "mixer.k_proj", k, r.Dim, bias).Permute(r.HeadDim, r.HeadDim)
			l.Linear("attn_v", "mixer.v_proj", k, r.Dim, bias)
			l.Linear("attn_output", "mixer.o_proj", r.Dim, q, bias)
		case "mlp":
			l.Linear("ffn_up", "mixer.up_proj", ffn, r.Dim, mlpBias)
			l.Linear("ffn_down", "mixer.down_proj", r.Dim, ffn, mlpBias)
		case "moe":
			l.Linear("ffn_gate_inp", "mixer.gate", experts, r.Dim, false)
			l.Tensor("exp_probs_b.bias", "mixer.gate.e_score_correction_bias", experts)
			l.Experts("ffn_up_exps", "mixer.experts.%d.up_proj", experts, ffn, r.Dim)
			l.Experts("ffn_down_exps", "mixer.experts.%d.down_proj", experts, r.Dim, ffn)
			l.Linear("ffn_up_shexp", "mixer.shared_experts.up_proj", sharedFFN, r.Dim, false)
			l.Linear("ffn_down_shexp", "mixer.shared_experts.down_proj", r.Dim, sharedFFN, false)
		}
	}
	for i, m := range mixers {
		l := c.LayerAt(i, fmt.Sprintf("%slayers.%d.", root, i))
		l.Norm("attn_norm", "norm", r.Dim)
		mixer(l, m)
	}
	if further > 0 {
		l := c.LayerAt(r.Layers, "mtp.layers.0.")
		l.nextn(r)
		l.Norm("attn_norm", "norm", r.Dim)
		mixer(l, "attention")
		l = c.LayerAt(r.Layers, "mtp.layers.1.")
		l.Norm("post_attention_norm", "norm", r.Dim)
		mixer(l, "moe")
		l.Norm("nextn.shared_head_norm", "final_layernorm", r.Dim)
	}
	c.Tensor("output_norm.weight", root+"norm_f.weight", r.Dim)
	c.Output(r, headName)
}

// nemotronMTP returns 1 where the checkpoint has a layer that predicts a further token and that is kept: attention, and
// experts behind it, which the checkpoint has as two.
func (c *Conversion) nemotronMTP(mixture bool) int {
	n, pattern := c.Config.Int(nextnKey, 0, 0, maxLayers), c.Config.String("mtp_hybrid_override_pattern", "*E")
	if c.mtpLayers() == 2 && mixture && n == 1 && pattern == "*E" {
		return 1
	}
	if c.MTP == KeepMTP {
		c.skipMTP()
	}
	return 0
}

// wantNemotronParts refuses what readers take for granted otherwise.
func (c *Conversion) wantNemotronParts() {
	o := c.Config
	for _, key := range []string{"use_bias", "mamba_proj_bias"} {
		if o.Bool(key, false) {
			c.Refuse(key, "GGUF readers know no biases of the state space's linears")
		}
	}
	for _, act := range [][2]string{{"mlp_hidden_act", "relu2"}, {"mamba_hidden_act", "silu"}} {
		if o.String(act[0], act[1]) != act[1] {
			c.Refuse(act[0], "GGUF readers take "+act[1])
		}
	}
}

func specNemotronH(k *model.Keys) *model.Spec {
	h := readUnturned(k, kvHeadsKey, ffnKey)
	h.layerNorm = false // RMSNorm, whatever the key is called
	h.eps = float32(k.Float("attention.layer_norm_rms_epsilon", float64(h.eps), 0, 1))
	kv, s := h.readKVHeads(k), readStateSpace(k)
	wide := k.Ints("feed_forward_length", h.layers, -1, 0, model.MaxWidth)
	shared := k.Int("expert_shared_feed_forward_length", 0, 0, model.MaxWidth)
	routing := h.readRouting(k, model.GateSigmoid)
	routing.gating = model.GateSigmoid
	scale := float32(k.Float("attention.scale", 0, -1, model.MaxWidth))
	if n := k.Int("moe_latent_size", 0, 0, model.MaxWidth); n > 0 {
		k.Fail("moe_latent_size", "is %d: experts in a narrower space are not supported", n)
	}
	h.dropNextn(k)
	return h.spec(func(b *model.Loader, i int) {
		r := model.Residual{Pre: h.norm(b, "attn_norm")}
		switch {
		case kv[i] == 0 && wide[i] == 0:
			r.Branch = h.mamba2(b, s, model.Required).Branch()
		case wide[i] == 0:
			a := h.withKVHeads(kv[i]).attention(b, model.Optional, model.Optional)
			if scale != 0 {
				a.Scale = scale
			}
			r.Branch = a.Branch()
		case h.experts == 0:
			r.Branch = h.ungated(b, "", wide[i], model.ReLU2, model.Optional).Branch()
		default:
			n := h.experts
			ffn := h.expertFFN
			if !k.Has("expert_feed_forward_length") {
				ffn = wide[i] / max(h.expertsUsed, 1)
			}
			moe := &model.MoE{Act: model.ReLU2, Router: b.Kept("ffn_gate_inp", n, h.dim, model.Absent), Top: h.expertsUsed,
				SelectionBias: b.Vector("exp_probs_b.bias", n, model.Required),
				Up:            b.Experts("ffn_up_exps", n, ffn, h.dim, model.Absent),
				Down:          b.Experts("ffn_down_exps", n, h.dim, ffn, model.Absent),
				Shared:        h.ungated(b, "_shexp", shared, model.ReLU2, model.Absent)}
			routing.apply(moe)
			r.Branch = moe.Branch()
		}
		b.Residual(r)
	})
}

// ungated is an MLP without a gate, whose tensors end in suffix.
func (h *hyper) ungated(b *model.Loader, suffix string, ffn int, act model.Activation, bias model.Presence) *model.MLP {
	return &model.MLP{Act: act, Up: b.Linear("ffn_up"+suffix, ffn, h.dim, bias), Down: b.Linear("ffn_down"+suffix, h.dim, ffn, bias)}
}
