package arch

import (
	"math"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Mistral 3 (Mistral Small 3.1, Ministral 3, arXiv:2601.08584): Llama's graph. Ministral 3 has YaRN with a logarithmic
// multiplier and sharpens attention at far positions.
func init() {
	register(&Family{
		Name:    "mistral3",
		Classes: []string{"Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"},
		Takes:   func(o *object.Object) bool { return o.String("model_type", "") != "mistral4" },
		Convert: convertMistral3,
		Spec:    specMistral3,

		Unwindowed: true,
	})
	tokenizes(&Tokenizer{PrefixSaid: true}, "Mistral3ForConditionalGeneration", "Ministral3ForCausalLM")
}

func convertMistral3(c *Conversion) {
	o := c.Config
	third := o.String("model_type", "") == "ministral3"
	d := Defaults{Heads: 32, KVHeads: 8, Context: 131072}
	if third {
		d = Defaults{Heads: 32, KVHeads: 8, HeadDim: 128, Context: 262144, Eps: 1e-5, Theta: 1e6}
	}
	r := c.Read(d)
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention", Factors: true, Betas: true})
	window := o.Int("sliding_window", 0, 0, maxContext)
	if !third && !o.Present("sliding_window") {
		window = mistralWindow
	}
	if third && o.Err() == nil && rope.kind != "yarn" {
		o.Fail("rope_parameters", "are of type %s; GGUF readers want yarn for Ministral 3", rope.kind)
	}
	if o.Err() != nil {
		return
	}
	if third {
		c.setLogMultiplier(rope)
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	if window > 0 && window < r.Context {
		c.SetInt("attention.sliding_window", window)
	}
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", rope.dims)
	c.Embeddings(r)
	c.ropeFactors(rope)
	c.plainLayers(r, rope, false, false, 0)
	c.Head(r)
}

// setLogMultiplier sets what Ministral 3 has beyond YaRN. Readers divide YaRN's magnitude, 0.1·ln(factor)+1, by the same
// with mscale_all_dim in front of the logarithm.
func (c *Conversion) setLogMultiplier(e *rope) {
	s := e.scaling
	if m := s.Float("mscale_all_dim", 0, -1, maxWidth); m != 0 {
		c.SetFloat("rope.scaling.yarn_log_multiplier", m)
		e.magnitude *= logMagnitude(m, e.factor)
		if math.Abs(e.magnitude-1) < 1e-6 {
			e.magnitude = 1
		}
	}
	c.SetFloat("attention.temperature_scale", s.Float("llama_4_scaling_beta", 0, -1, maxWidth))
}

// logMagnitude is m·0.1·ln(factor)+1.
func logMagnitude(m, factor float64) float64 {
	if factor <= 1 {
		return 1
	}
	return 0.1*m*math.Log(factor) + 1
}

func specMistral3(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEPairs).dense(k)
	if m := k.Float("rope.scaling.yarn_log_multiplier", 0, -1, model.MaxWidth); m != 0 && h.rope.Scaling == "yarn" {
		h.rope.AttnFactor /= logMagnitude(m, h.rope.Factor)
	}
	var temperature *model.Temperature
	if scale := k.Float("attention.temperature_scale", 0, -1, model.MaxWidth); scale != 0 {
		temperature = &model.Temperature{Scale: scale, Every: max(h.rope.OrigContext, 1)}
	}
	return h.withFactors(h.spec(func(b *model.Loader, i int) {
		attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
		a := h.attention(b, model.Optional, model.Optional)
		a.Temperature = temperature
		b.Residual(model.Residual{Pre: attn, Branch: a.Branch()})
		b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Optional).Branch()})
	}))
}
