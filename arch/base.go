package arch

import "github.com/llmq/llmq/formats/hf/object"

// SetBase sets what llama.cpp's converter sets for every class (conversion/base.py, TextModel.set_gguf_parameters), under
// the same conditions, so that its files and ours agree key by key. Families add what is their own, or set it anew.
func (c *Conversion) SetBase(r *Config, e *rope) {
	o := c.Config
	c.SetInt("block_count", r.Layers)
	c.SetInt("context_length", r.Context)
	c.SetInt("embedding_length", r.Dim)
	if r.FFN > 0 {
		c.SetInt("feed_forward_length", r.FFN)
	}
	c.SetInt("attention.head_count", r.Heads)
	if o.Has(c.alias("num_key_value_heads", "n_kv_heads")) || r.KVHeads != r.Heads {
		c.SetInt("attention.head_count_kv", r.KVHeads)
	}
	if e != nil {
		c.setScaling(e)
	}
	if o.Has("rms_norm_eps") || o.Has("norm_eps") || !r.LayerNorm {
		c.SetFloat("attention.layer_norm_rms_epsilon", r.Eps)
	}
	if r.LayerNorm {
		c.SetFloat("attention.layer_norm_epsilon", r.Eps)
	}
	c.setRouting()
	if o.Has("head_dim") || r.Heads*r.HeadDim != r.Dim {
		c.setHeadDim(r)
	}
}

// setScaling sets RoPE's scaling and bases.
func (c *Conversion) setScaling(e *rope) {
	switch e.kind {
	case "linear":
		c.Set("rope.scaling.type", "linear")
		c.SetFloat("rope.scaling.factor", e.factor)
	case "yarn":
		c.Set("rope.scaling.type", "yarn")
		c.SetFloat("rope.scaling.factor", e.factor)
		c.SetInt("rope.scaling.original_context_length", e.original)
		for _, key := range [][2]string{{"attention_factor", "yarn_attn_factor"}, {"beta_fast", "yarn_beta_fast"}, {"beta_slow", "yarn_beta_slow"}} {
			if e.scaling.Has(key[0]) {
				c.SetFloat("rope.scaling."+key[1], e.scaling.Float(key[0], 0, 0, maxWidth))
			}
		}
		if float32(e.magnitude) != 1 {
			c.SetFloat("rope.scaling.attn_factor", e.magnitude)
		}
	case "longrope":
		c.Set("rope.scaling.type", "longrope")
	}
	sections := e.params.Ints("mrope_section", 0, maxWidth)
	if sections == nil {
		sections = e.scaling.Ints("mrope_section", 0, maxWidth)
	}
	if sections != nil {
		four := make([]int32, 4)
		for i := range min(4, len(sections)) {
			four[i] = int32(sections[i])
		}
		c.Set("rope.dimension_sections", four)
	}
	c.SetFloat("rope.freq_base", e.theta)
	if e.local > 0 {
		c.SetFloat("rope.freq_base_swa", e.local)
	}
}

// gatings are llama.cpp's numbers for how a router's logits become scores.
var gatings = map[string]uint32{"softmax": 1, "sigmoid": 2}

// setRouting sets what a mixture of experts has by the members that many classes share.
func (c *Conversion) setRouting() {
	o := c.Config
	set := func(key string, names ...string) {
		if name := c.alias(names...); o.Has(name) {
			c.SetInt(key, o.Int(name, 0, 0, maxWidth))
		}
	}
	set("expert_count", "num_local_experts", "num_experts", "n_routed_experts")
	set("expert_used_count", "num_experts_per_tok", "num_experts_per_token", "top_k_experts")
	set("expert_group_count", "n_group")
	set("expert_group_used_count", "topk_group")
	if name := c.alias("score_function", "scoring_func", "score_func"); o.Has(name) {
		f := o.String(name, "")
		if gatings[f] == 0 {
			o.Fail(name, "is %q; supported: softmax, sigmoid", f)
		}
		c.Set("expert_gating_func", gatings[f])
	}
}

// localTheta reads the base of layers with a window: of their own rope_parameters, or under the names of older
// configurations; 0: they have none of their own.
func (c *Conversion) localTheta() float64 {
	o := c.Config
	var sliding *object.Object
	if p := o.Object("rope_parameters"); p != nil {
		sliding = p.Object("sliding_attention")
	}
	if sliding != nil {
		if kind := sliding.String("rope_type", "default"); kind != "default" {
			sliding.Fail("rope_type", "is %q: layers with a window are not scaled by GGUF readers", kind)
		}
		return sliding.Float("rope_theta", 10000, 0, maxContext)
	}
	return o.Float(c.alias("rope_local_base_freq", "local_rope_theta", "swa_rope_theta"), 0, 0, maxContext)
}
