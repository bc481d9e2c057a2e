package arch

import (
	"slices"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Granite 4 (IBM, github.com/ibm-granite/granite-4.0-language-models): Granite with Mamba-2 layers in the place of most of
// its attention, which then has no RoPE, and a shared MLP beside experts or without them. A model of the class that has
// attention alone is a granite or granitemoe.
func init() {
	register(&Family{Name: "granitehybrid", Classes: []string{graniteHybrid}, Takes: func(o *object.Object) bool { return takesGranite(o, "granitehybrid") },
		Convert: convertGraniteHybrid, Spec: specGraniteHybrid})
}

const graniteHybrid = "GraniteMoeHybridForCausalLM"

// takesGranite says whether a config.json is of one of Granite's architectures.
func takesGranite(o *object.Object, name string) bool {
	if !slices.Contains(o.Strings("architectures"), graniteHybrid) {
		return name != "granitehybrid"
	}
	types := o.Strings("layer_types")
	is := "granite"
	switch {
	case types == nil || slices.Contains(types, "mamba"):
		is = "granitehybrid"
	case o.Int("num_local_experts", 8, 0, maxWidth) > 0:
		is = "granitemoe"
	}
	return name == is
}

// convertGraniteHybrid describes what a checkpoint of the class becomes, with whatever layers it has.
func convertGraniteHybrid(c *Conversion) {
	r := c.Read(Defaults{})
	c.WantAct(r, "silu")
	o := c.Config
	scales := c.readGraniteScales()
	experts := o.Int("num_local_experts", 8, 0, maxWidth)
	used := o.Int("num_experts_per_tok", min(2, experts), 0, maxWidth)
	shared := o.Int("shared_intermediate_size", 1024, 1, maxWidth)
	if r.FFN = c.readFFN(); experts == 0 {
		r.FFN = shared
	}
	bias := o.Bool("attention_bias", false)
	turned := o.String("position_embedding_type", "") == "rope"
	rope := c.readRoPE(r, ropeOptions{})
	s := stateSpace{heads: o.Int("mamba_n_heads", 128, 1, maxWidth), groups: o.Int("mamba_n_groups", 1, 1, maxWidth),
		state: o.Int("mamba_d_state", 256, 1, maxWidth), width: o.Int("mamba_d_conv", 4, 1, maxWidth)}
	s.inner = o.Int("mamba_expand", 2, 1, maxWidth) * r.Dim
	convBias := o.Bool("mamba_conv_bias", true)
	types := o.Strings("layer_types")
	if types == nil {
		types = slices.Repeat([]string{"mamba"}, r.Layers)
	}
	if o.Err() == nil && len(types) < r.Layers {
		o.Fail("layer_types", "has %d elements, want %d, one for each layer", len(types), r.Layers)
	}
	if o.Err() == nil && experts > 0 && (used < 1 || used > experts) {
		o.Fail("num_experts_per_tok", "is %d, want 1 to %d", used, experts)
	}
	hybrid := c.Family.Name == "granitehybrid"
	if hybrid {
		c.wantGraniteStateSpace(r, &s)
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.SetExperts(experts, used, 0)
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", rope.dims)
	c.setGraniteScales(scales)
	c.SetInt("expert_shared_feed_forward_length", shared)
	c.Set("rope.scaling.finetuned", turned)
	if hybrid {
		kv := make([]int32, r.Layers)
		for i, t := range types[:r.Layers] {
			switch t {
			case "attention":
				kv[i] = int32(r.KVHeads)
			case "mamba":
			default:
				o.Fail("layer_types", "has %.64q; supported for %s: attention, mamba", t, c.Class)
			}
		}
		c.Set("attention.head_count_kv", kv)
		c.setStateSpace(&s)
		if !turned {
			c.SetInt("context_length", 1<<20) // what nothing but the state space bounds
		}
	}
	c.Embeddings(r)
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		if types[i] == "mamba" {
			l.mamba2("mamba.", r, &s, convBias, true)
		} else {
			l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, bias).Permute(r.HeadDim, rope.dims)
			l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, bias).Permute(r.HeadDim, rope.dims)
			l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, bias)
			l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, bias)
		}
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if experts > 0 {
			l.graniteExperts(r, experts, shared)
			continue
		}
		l.Split("shared_mlp.input_linear", r.Dim, false, []string{"ffn_gate", "ffn_up"}, []int{shared, shared})
		l.Linear("ffn_down", "shared_mlp.output_linear", r.Dim, shared, false)
	}
	c.Head(r)
}

// wantGraniteStateSpace refuses what readers take for granted otherwise.
func (c *Conversion) wantGraniteStateSpace(r *Config, s *stateSpace) {
	o := c.Config
	if s.inner != 2*r.Dim {
		c.Refuse("mamba_expand", "GGUF readers take 2")
	}
	if what := s.valid(); what != "" && o.Err() == nil {
		o.Fail("mamba_n_heads", "%d: %d features %s (%d groups)", s.heads, s.inner, what, s.groups)
	}
	if o.Has("mamba_d_head") && o.Excerpt("mamba_d_head") != `"auto"` && o.Int("mamba_d_head", 0, 1, maxWidth)*s.heads != s.inner {
		c.Refuse("mamba_d_head", "heads make another width than mamba_expand times hidden_size")
	}
	if o.Bool("mamba_proj_bias", false) {
		c.Refuse("mamba_proj_bias", "GGUF readers know no biases of the state space's linears")
	}
	if s.groups > 1 {
		c.Warn("%s: mamba_n_groups is %d: GGUF readers normalise each group by itself", o.File, s.groups)
	}
	c.wantTimeSteps("time_step_limit")
}

func specGraniteHybrid(k *model.Keys) *model.Spec {
	turned := k.Bool("rope.scaling.finetuned", true)
	var h *hyper
	if turned {
		h = readHyper(k, elementwise.RoPEPairs, kvHeadsKey)
	} else {
		h = readUnturned(k, kvHeadsKey)
	}
	h.expertFFN = h.ffn
	kv, s := h.readKVHeads(k), readStateSpace(k)
	shared := k.Int("expert_shared_feed_forward_length", 0, 0, model.MaxWidth)
	residual := float32(k.Float("residual_scale", 0, -1, model.MaxWidth))
	embedding := float32(k.Float("embedding_scale", 0, -1, model.MaxWidth))
	logits := k.Float("logit_scale", 1, 0, model.MaxWidth)
	scale := float32(k.Float("attention.scale", 0, -1, model.MaxWidth))
	spec := h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		if kv[i] == 0 {
			b.Residual(model.Residual{Pre: norm, Branch: h.mamba2(b, s, model.Required).Branch(), Scale: residual})
		} else {
			a := h.withKVHeads(kv[i]).attention(b, model.Optional, model.Optional)
			if scale != 0 {
				a.Scale = scale
			}
			b.Residual(model.Residual{Pre: norm, Branch: a.Branch(), Scale: residual})
		}
		norm = h.norm(b, "ffn_norm")
		if h.experts == 0 {
			b.Residual(model.Residual{Pre: norm, Branch: h.mlp(b, model.SiLU, model.Optional).Branch(), Scale: residual})
			return
		}
		moe := h.moe(b)
		moe.Normalize = true
		if shared > 0 {
			moe.Shared = h.mlpOf(b, "_shexp", shared, model.SiLU, model.Absent)
		}
		b.Residual(model.Residual{Pre: norm, Branch: moe.Branch(), Scale: residual})
	})
	spec.Outer = func(b *model.Loader) model.Ends {
		return model.Ends{EmbedScale: embedding, Norm: h.norm(b, "output_norm"), LogitScale: float32(1 / logits)}
	}
	return spec
}
