package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Llama 4 (Meta, github.com/meta-llama/llama-models/tree/main/models/llama4): three of four layers rotate q and k, which
// are then normalised, and attend within chunks; the others do neither and see everything. An expert's weight multiplies
// its input, and a shared expert sees all tokens.
func init() {
	register(&Family{Name: "llama4", Classes: []string{"Llama4ForConditionalGeneration", "Llama4ForCausalLM"},
		Convert: convertLlama4, Spec: specLlama4})
	tokenizes(&Tokenizer{Pre: "llama4"}, "Llama4ForCausalLM", "Llama4ForConditionalGeneration")
}

const (
	llama4Chunk  = 8192 // tokens of a chunk, and those after which scores of layers without RoPE are multiplied
	llama4Period = 4    // of so many layers the last has no RoPE
	llama4Large  = 128  // experts of the model whose queries and keys are not normalised
)

func convertLlama4(c *Conversion) {
	r := c.Read(Defaults{Context: 131072, Eps: 1e-5, HeadDim: 128, KVHeads: 8, Theta: 500000})
	c.WantAct(r, "silu")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{Factors: true})
	r.FFN = o.Int("intermediate_size_mlp", 16384, 1, maxWidth)
	ffn := o.Int("intermediate_size", 8192, 1, maxWidth)
	experts := o.Int("num_local_experts", 16, 1, maxWidth)
	used := o.Int("num_experts_per_tok", 1, 1, max(experts, 1))
	step := o.Int("interleave_moe_layer_step", 1, 1, maxLayers)
	full := c.wantLlama4Layers(r, step)
	if o.Bool("use_qk_norm", true) != (experts != llama4Large) && o.Err() == nil {
		c.Refuse("use_qk_norm", "GGUF readers normalise queries and keys unless there are 128 experts")
	}
	if o.Bool("attention_bias", false) {
		c.Refuse("attention_bias", "GGUF readers know no bias of attn_output")
	}
	c.noteTemperature()
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetExperts(experts, used, ffn)
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", rope.dims)
	c.SetInt("interleave_moe_layer_step", step)
	if full {
		c.SetInt("attention.sliding_window", 0)
	}
	c.Embeddings(r)
	c.ropeFactors(rope)
	const fused, down = "feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, false, false)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if (i+1)%step != 0 {
			l.Linear("ffn_gate", "feed_forward.gate_proj", r.FFN, r.Dim, false)
			l.Linear("ffn_up", "feed_forward.up_proj", r.FFN, r.Dim, false)
			l.Linear("ffn_down", "feed_forward.down_proj", r.Dim, r.FFN, false)
			continue
		}
		l.Linear("ffn_gate_inp", "feed_forward.router", experts, r.Dim, false)
		l.FusedExperts("ffn_gate_exps", fused, experts, ffn, r.Dim, 0, 2*ffn, true)
		l.FusedExperts("ffn_up_exps", fused, experts, ffn, r.Dim, ffn, 2*ffn, true)
		l.FusedExperts("ffn_down_exps", down, experts, r.Dim, ffn, 0, r.Dim, true)
		l.Linear("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj", ffn, r.Dim, false)
		l.Linear("ffn_up_shexp", "feed_forward.shared_expert.up_proj", ffn, r.Dim, false)
		l.Linear("ffn_down_shexp", "feed_forward.shared_expert.down_proj", r.Dim, ffn, false)
	}
	c.Head(r)
}

// wantLlama4Layers refuses other kinds of layers than those that readers take. full says that all layers see everything.
func (c *Conversion) wantLlama4Layers(r *Config, step int) (full bool) {
	o := c.Config
	types := o.Strings("layer_types")
	full = len(types) > 0
	for _, t := range types {
		full = full && t == "full_attention"
	}
	period := o.Int("no_rope_layer_interval", llama4Period, 1, maxLayers)
	turned := o.Ints("no_rope_layers", 0, 1)
	want := llama4Period
	if full {
		want = r.Layers
	}
	for i := range r.Layers {
		is, reader := (i+1)%period != 0, (i+1)%want != 0
		if i < len(turned) {
			is = turned[i] == 1
		}
		if is != reader && o.Err() == nil {
			c.Refuse("no_rope_layers", "GGUF readers take each 4th layer, or the last where all see everything")
		}
		if chunked := len(types) > i && types[i] == "chunked_attention"; len(types) > i && !full && chunked != reader {
			c.Refuse("layer_types", "GGUF readers take chunks where there is RoPE")
		}
	}
	if !full && o.Int("attention_chunk_size", llama4Chunk, 1, maxContext) != llama4Chunk {
		c.Refuse("attention_chunk_size", "GGUF readers take 8192")
	}
	for i, layer := range o.Ints("moe_layers", 0, maxLayers) {
		if layer != (i+1)*step-1 {
			c.Refuse("moe_layers", "GGUF readers go by interleave_moe_layer_step")
		}
	}
	return full
}

// noteTemperature notes where readers multiply scores in long contexts otherwise than the class.
func (c *Conversion) noteTemperature() {
	o := c.Config
	o.Get("attn_temperature_tuning") // a truth value, or 4 in old configurations
	switch o.Excerpt("attn_temperature_tuning") {
	case "false", "0", "null":
		c.Warn("%s: attn_temperature_tuning is false: GGUF readers multiply scores from token 8192 on anyhow", o.File)
		return
	}
	if o.Float("floor_scale", llama4Chunk, 0, maxContext) != llama4Chunk {
		c.Refuse("floor_scale", "GGUF readers take 8192")
	}
	if o.Float("attn_scale", 0.1, 0, maxWidth) != 0.1 {
		c.Refuse("attn_scale", "GGUF readers take 0.1")
	}
}

func specLlama4(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEPairs)
	step := k.Int("interleave_moe_layer_step", -1, 0, model.MaxLayers)
	period, longest := llama4Period, llama4Chunk-1 // at position 8191 scores begin to be multiplied
	if k.Has("attention.sliding_window") && h.window == 0 {
		period, longest = h.layers, 0
	}
	h.window = 0
	spec := h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		a := h.attention(b, model.Optional, model.Absent)
		switch {
		case (i+1)%period == 0:
			a.RoPE = nil
		case h.experts != llama4Large:
			a.QNorm, a.NormAfter = model.Unweighted(h.headDim, h.eps), true
			a.KNorm = a.QNorm
		}
		b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
		norm = h.norm(b, "ffn_norm")
		if step == 0 || (i+1)%step != 0 {
			b.Residual(model.Residual{Pre: norm, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			return
		}
		moe := h.moe(b)
		moe.Gating, moe.WeightFirst = model.GateSigmoid, true
		moe.Shared = h.mlpOf(b, "_shexp", h.expertFFN, model.SiLU, model.Absent)
		b.Residual(model.Residual{Pre: norm, Branch: moe.Branch()})
	})
	spec.Longest = longest
	spec.Outer = func(b *model.Loader) model.Ends {
		b.SetFactors(h.rope, "rope_freqs.weight", model.Optional)
		return model.Ends{Norm: h.norm(b, "output_norm")}
	}
	return spec
}
