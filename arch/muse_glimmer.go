package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Muse Glimmer (huggingface.co/meta-models/Muse-Glimmer-30B): embeddings are normalised, heads too, with a factor of the
// queries in the place of weights; attention has an output gate, three of four layers a window and RoPE, the fourth neither.
func init() {
	register(&Family{
		Name:    "muse-glimmer",
		Classes: []string{"MuseGlimmerForConditionalGeneration"},
		Convert: convertMuseGlimmer,
		Spec:    specMuseGlimmer,
	})
	tokenizes(&Tokenizer{Pre: "llama4"}, "MuseGlimmerForConditionalGeneration")
}

const (
	// museGlimmerPeriod: of so many layers the last has no window, where the metadata do not say.
	museGlimmerPeriod = 4
	// museGlimmerEps is of the norms after attention and MLP.
	museGlimmerEps = 1e-8
)

func convertMuseGlimmer(c *Conversion) {
	r := c.Read(Defaults{Eps: 1e-5, Theta: 5e5})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	c.wantFalse("attention_bias", "mlp_bias")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{LayerType: "sliding_attention"})
	if o.Err() == nil && rope.kind != "default" {
		o.Fail("rope_scaling", "is of type %s, which GGUF readers do not know for %s", rope.kind, c.Class)
	}
	window := o.Int("sliding_window", -1, 1, maxContext)
	factor := o.Float("qk_scale_factor", math.NaN(), -maxWidth, maxWidth)
	logits := o.Float("output_multiplier", math.NaN(), 0, maxWidth)
	if o.Err() == nil && !o.Has("layer_types") {
		o.Fail("layer_types", "is missing")
	}
	windowed := c.windowedLayers(r.Layers, museGlimmerPeriod)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetFloat("final_logit_softcapping", o.Float("final_logit_softcapping", 0, 0, maxWidth)) // readers cap at 30 where it is absent
	c.SetFloat("logit_scale", logits)
	c.SetInt("attention.sliding_window", window)
	c.Set("attention.sliding_window_pattern", windowed)
	c.Embeddings(r)
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	factors, ones := make([]float32, r.HeadDim), make([]float32, r.HeadDim)
	for i := range ones {
		factors[i], ones[i] = float32(factor), 1
	}
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim).Plus(1)
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, false).Permute(r.HeadDim, r.HeadDim)
		l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, false).Permute(r.HeadDim, r.HeadDim)
		l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, false)
		c.Values(l.gguf+"attn_q_norm.weight", factors)
		c.Values(l.gguf+"attn_k_norm.weight", ones)
		l.Linear("attn_gate", "self_attn.gate_proj", q, r.Dim, false)
		l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, false)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim).Plus(1)
		l.Norm("ffn_norm", "pre_feedforward_layernorm", r.Dim).Plus(1)
		l.gatedMLP(r, false)
		l.Norm("post_ffw_norm", "post_feedforward_layernorm", r.Dim).Plus(1)
	}
	c.UntiedHead(r, headName)
}

func specMuseGlimmer(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEPairs).dense(k)
	h.readPattern(museGlimmerPeriod)
	local := h.rope.Unscaled(k.Float("rope.freq_base_swa", h.rope.Base, 0, math.MaxFloat32))
	scale := float32(k.Float("logit_scale", math.NaN(), -model.MaxWidth, model.MaxWidth))
	softcap := float32(k.Float("final_logit_softcapping", gemma2LogitCap, -1, model.MaxWidth))
	k.Int("attention.sliding_window", -1, 1, model.MaxContext)
	spec := h.spec(func(b *model.Loader, i int) {
		attn := h.norm(b, "attn_norm")
		a := h.attention(b, model.Optional, model.Absent)
		h.headNorms(b, a)
		a.Gate = b.Linear("attn_gate", a.Heads*a.HeadDim, h.dim, model.Absent)
		if a.RoPE = local; h.windowOf(i) == 0 {
			a.RoPE = nil
		}
		b.Residual(model.Residual{Pre: attn, Branch: a.Branch(), Post: b.Norm("post_attention_norm", h.dim, museGlimmerEps)})
		b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlp(b, model.SiLU, model.Absent).Branch(),
			Post: b.Norm("post_ffw_norm", h.dim, museGlimmerEps)})
	})
	spec.Outer = func(b *model.Loader) model.Ends {
		return model.Ends{EmbedNorm: model.Unweighted(h.dim, h.eps), Norm: h.norm(b, "output_norm"), LogitScale: scale, Softcap: softcap}
	}
	return spec
}
