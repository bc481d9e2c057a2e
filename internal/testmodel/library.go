package testmodel

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// library is what the transformers library (5) makes of a config.json: the numbers that its forward pass uses, with its own
// defaults where the file is silent. It is read here member by member, for the classes of the tests alone, so that what
// package arch reads can be held to it.
type library struct {
	layers, dim, heads, kvHeads, headDim, ffn, vocab, context int

	eps, scale                      float64 // of norms, of attention's scores
	act                             string
	qkNorm, qkvBias, oBias, mlpBias bool
	tied                            bool
	gemma                           bool // four norms a layer, weights of norms plus 1, embeddings times √dim
	windows                         []int
	ropes                           []rotary // of each layer
	experts, used, expertFFN        int      // 0: an MLP
	normalized                      bool     // the weights of a token's experts sum to 1
	softcap                         float64  // of logits; 0: none
}

// rotary is the angle per position of each pair of a head's elements, and the factor on cosine and sine.
type rotary struct {
	inverse   []float64
	magnitude float64
}

// members reads config.json's as Python would.
type members map[string]any

func (m members) has(key string) bool { return m[key] != nil }

// number returns a member, or what the library takes where there is none.
func (m members) number(key string, absent float64) float64 {
	switch v := m[key].(type) {
	case float64:
		return v
	case nil:
		if _, null := m[key]; null && math.IsNaN(absent) {
			panic("testmodel: " + key + " is null")
		}
		return absent
	}
	panic(fmt.Sprintf("testmodel: %s is %v", key, m[key]))
}

func (m members) int(key string, absent int) int { return int(m.number(key, float64(absent))) }

func (m members) bool(key string, absent bool) bool {
	if v, ok := m[key].(bool); ok {
		return v
	}
	return absent
}

func (m members) object(key string) members {
	v, _ := m[key].(map[string]any)
	return v
}

// readLibrary reads config.json for its class.
func readLibrary(config map[string]any) *library {
	m := members(config)
	class := m["architectures"].([]any)[0].(string)
	l := &library{layers: m.int("num_hidden_layers", 0), dim: m.int("hidden_size", 0), heads: m.int("num_attention_heads", 0),
		ffn: m.int("intermediate_size", 0), vocab: m.int("vocab_size", 0), eps: m.number("rms_norm_eps", 1e-6), act: "silu"}
	kvHeads, context, headDim := l.heads, 2048, l.dim/l.heads
	switch class {
	case "MistralForCausalLM":
		kvHeads, context = 8, 4096*32
	case "Qwen2ForCausalLM":
		kvHeads, context = 32, 32768
	case "Qwen3ForCausalLM":
		kvHeads, context, headDim = 32, 32768, 128
	case "Qwen3MoeForCausalLM":
		kvHeads, context = 4, 32768
	case "Gemma3ForCausalLM":
		kvHeads, context, headDim = 4, 131072, 256
		l.act = "gelu"
	}
	if _, null := m["num_key_value_heads"]; null && !m.has("num_key_value_heads") {
		kvHeads = l.heads
	}
	l.kvHeads, l.context, l.headDim = m.int("num_key_value_heads", kvHeads), m.int("max_position_embeddings", context), m.int("head_dim", headDim)
	l.scale = 1 / math.Sqrt(float64(l.headDim))
	l.tied = m.bool("tie_word_embeddings", class == "Gemma3ForCausalLM")

	l.windows = make([]int, l.layers)
	full := m.rope(l, m.ropeParameters(10000))
	l.ropes = slices.Repeat([]rotary{full}, l.layers)
	switch class {
	case "LlamaForCausalLM":
		l.qkvBias = m.bool("attention_bias", false)
		l.oBias, l.mlpBias = l.qkvBias, m.bool("mlp_bias", false)
	case "MistralForCausalLM":
		window := m.int("sliding_window", 0)
		if _, there := m["sliding_window"]; !there {
			window = 4096
		}
		l.windows = slices.Repeat([]int{window}, l.layers)
	case "Qwen2ForCausalLM":
		l.qkvBias = true
		m.qwenWindows(l)
	case "Qwen3ForCausalLM":
		l.qkNorm = true
		l.qkvBias = m.bool("attention_bias", false)
		l.oBias = l.qkvBias
		m.qwenWindows(l)
	case "Qwen3MoeForCausalLM":
		l.qkNorm = true
		l.qkvBias = m.bool("attention_bias", false)
		l.oBias = l.qkvBias
		if m.bool("use_sliding_window", false) { // layer_types and max_window_layers are not read
			window := m.int("sliding_window", 0)
			if _, there := m["sliding_window"]; !there {
				window = 4096
			}
			l.windows = slices.Repeat([]int{window}, l.layers)
		}
		l.experts, l.used = m.int("num_experts", m.int("num_local_experts", 128)), m.int("num_experts_per_tok", 8)
		l.expertFFN, l.normalized = m.int("moe_intermediate_size", 768), m.bool("norm_topk_prob", false)
	case "Gemma3ForCausalLM":
		l.qkNorm, l.gemma = true, true
		l.qkvBias = m.bool("attention_bias", false)
		l.oBias = l.qkvBias
		l.scale = 1 / math.Sqrt(m.number("query_pre_attn_scalar", 256))
		l.softcap = m.number("final_logit_softcapping", 0)
		m.gemmaLayers(l)
	default:
		panic("testmodel: " + class)
	}
	return l
}

// qwenWindows gives windows to the layers that layer_types names, else to those from max_window_layers on.
func (m members) qwenWindows(l *library) {
	window := m.int("sliding_window", 0)
	if _, there := m["sliding_window"]; !there {
		window = 4096
	}
	if !m.bool("use_sliding_window", false) {
		window = 0
	}
	types, _ := m["layer_types"].([]any)
	for i := range l.windows {
		if types != nil && types[i] == "sliding_attention" || types == nil && i >= m.int("max_window_layers", 28) {
			l.windows[i] = window
		}
	}
}

// gemmaLayers gives each layer its window and its rotary embedding.
func (m members) gemmaLayers(l *library) {
	window := m.int("sliding_window", 4096)
	period := m.int("sliding_window_pattern", m.int("_sliding_window_pattern", 6))
	types, _ := m["layer_types"].([]any)
	full, sliding := members{}, members{}
	for _, p := range []struct {
		of   members
		name string
	}{{full, "full_attention"}, {sliding, "sliding_attention"}} {
		for k, v := range m.object("rope_parameters").object(p.name) {
			p.of[k] = v
		}
	}
	for k, v := range m.object("rope_scaling") {
		full[k] = v
	}
	if !full.has("rope_theta") {
		full["rope_theta"] = m.number("rope_theta", 1e6)
	}
	if !sliding.has("rope_theta") {
		sliding["rope_theta"] = m.number("rope_local_base_freq", 10000)
	}
	for i := range l.windows {
		slides := (i+1)%period != 0
		if types != nil {
			slides = types[i] == "sliding_attention"
		}
		if l.ropes[i] = m.rope(l, full); slides {
			l.windows[i], l.ropes[i] = window, m.rope(l, sliding)
		}
	}
}

// ropeParameters are rope_scaling or, if that is empty, rope_parameters, completed from the members around them.
func (m members) ropeParameters(theta float64) members {
	p := m.object("rope_scaling")
	if len(p) == 0 {
		p = m.object("rope_parameters")
	}
	if of := p.object("full_attention"); of != nil {
		p = of
	}
	all := members{"rope_theta": m.number("rope_theta", theta)}
	for k, v := range p {
		all[k] = v
	}
	return all
}

// rope is modeling_rope_utils.py.
func (m members) rope(l *library, p members) rotary {
	kind, _ := p["rope_type"].(string)
	if old, _ := p["type"].(string); kind == "" {
		kind = old
	}
	original := p.number("original_max_position_embeddings", float64(l.context))
	original = m.number("original_max_position_embeddings", original) // which has priority
	d, theta, factor := float64(l.headDim), p["rope_theta"].(float64), p.number("factor", float64(l.context)/original)
	r := rotary{magnitude: 1}
	for i := 0.0; i < d; i += 2 {
		f := 1 / math.Pow(theta, i/d)
		switch kind {
		case "", "default", "dynamic": // dynamic stretches beyond the context alone
		case "linear":
			f /= factor
		case "llama3":
			low, high := p["low_freq_factor"].(float64), p["high_freq_factor"].(float64)
			wavelength := 2 * math.Pi / f
			switch {
			case wavelength < original/high:
			case wavelength > original/low:
				f /= factor
			default:
				smooth := (original/wavelength - low) / (high - low)
				f = (1-smooth)*f/factor + smooth*f
			}
		case "yarn":
			correction := func(rotations float64) float64 {
				return d * math.Log(original/(rotations*2*math.Pi)) / (2 * math.Log(theta))
			}
			low := math.Max(math.Floor(correction(p.number("beta_fast", 32))), 0)
			high := math.Min(math.Ceil(correction(p.number("beta_slow", 1))), d-1)
			if low == high {
				high += 0.001
			}
			ramp := math.Min(math.Max((i/2-low)/(high-low), 0), 1)
			f = f/factor*ramp + f*(1-ramp)
			scale := func(mscale float64) float64 {
				if factor <= 1 {
					return 1
				}
				return 0.1*mscale*math.Log(factor) + 1
			}
			r.magnitude = scale(1)
			if p.number("mscale", 0) != 0 && p.number("mscale_all_dim", 0) != 0 {
				r.magnitude = scale(p.number("mscale", 0)) / scale(p.number("mscale_all_dim", 0))
			}
			r.magnitude = p.number("attention_factor", r.magnitude)
		default:
			panic("testmodel: rope_type " + kind)
		}
		r.inverse = append(r.inverse, f)
	}
	return r
}

// library reads the model's config.json.
func (m *Model) library() *library {
	data, err := json.Marshal(m.configJSON())
	if err != nil {
		panic(err) // numbers, strings and maps of them always marshal
	}
	var config map[string]any
	if err := json.Unmarshal(data, &config); err != nil {
		panic(err)
	}
	return readLibrary(config)
}

// configJSON is what config.json holds.
func (m *Model) configJSON() any {
	if m.members != nil {
		return m.members
	}
	return m.Config
}
