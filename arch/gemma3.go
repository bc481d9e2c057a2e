package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Gemma 3 (arXiv:2503.19786): embeddings times √D, norms before and after attention and MLP, norms of heads, GELU in the
// tanh form, and layers with a window and a RoPE base of their own between those that see everything.
func init() {
	register(&Family{
		Name:    "gemma3",
		Classes: []string{"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"},
		Convert: convertGemma3,
		Spec:    specGemma3,
	})
}

// gemma3Period: of so many layers the last has no window, where the metadata do not say.
const gemma3Period = 6

func convertGemma3(c *Conversion) {
	r := c.Read(Defaults{Context: 131072, HeadDim: 256, KVHeads: 4, Theta: 1e6, Tied: true, Act: "gelu_pytorch_tanh"})
	r.FFN = c.readFFN()
	c.WantAct(r, "gelu")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	if rope.local = c.localTheta(); rope.local == 0 {
		rope.local = 10000
	}
	bias := o.Bool("attention_bias", false)
	window := o.Int("sliding_window", 4096, 1, maxContext)
	period := o.Int(c.alias("sliding_window_pattern", "_sliding_window_pattern"), gemma3Period, 1, maxLayers)
	types := c.LayerTypes(r.Layers)
	c.wantScale(r, float64(gemma3ScaleDim(r.Layers, r.Dim, r.Heads, r.HeadDim)), 256)
	if o.Has("attn_logit_softcapping") {
		c.Refuse("attn_logit_softcapping", "GGUF readers do not cap Gemma 3's attention")
	}
	if o.Bool("use_bidirectional_attention", false) {
		c.Refuse("use_bidirectional_attention", "GGUF readers attend to what comes before a token alone")
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	if v := o.Float("final_logit_softcapping", 0, 0, maxWidth); v > 0 {
		c.SetFloat("final_logit_softcapping", v)
	}
	if period != 1 || types != nil {
		c.SetInt("attention.sliding_window", window)
	}
	windowed := make([]bool, r.Layers)
	usual := true
	for i := range windowed {
		if windowed[i] = (i+1)%period != 0; types != nil {
			windowed[i] = types[i] == "sliding_attention"
		}
		usual = usual && windowed[i] == ((i+1)%gemma3Period != 0)
	}
	if !usual {
		c.Set("attention.sliding_window_pattern", windowed)
	}
	c.CutEmbeddings("model.embed_tokens.weight", r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim).Plus(1)
		l.attention(r, bias, bias)
		l.headNorms(r).Plus(1)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim).Plus(1)
		l.Norm("ffn_norm", "pre_feedforward_layernorm", r.Dim).Plus(1)
		l.gatedMLP(r, false)
		l.Norm("post_ffw_norm", "post_feedforward_layernorm", r.Dim).Plus(1)
	}
	Tensors{c.Tensor("output_norm.weight", "model.norm.weight", r.Dim)}.Plus(1)
	c.Output(r, headName)
}

// gemma3ScaleDim is the dimension d of the attention's scale 1/√d that GGUF readers take: a head's, but for the model of
// 27 billion parameters, which they know by its layers.
func gemma3ScaleDim(layers, dim, heads, headDim int) int {
	if layers == 62 {
		return dim / heads
	}
	return headDim
}

// wantScale refuses another query_pre_attn_scalar than what GGUF readers take.
func (c *Conversion) wantScale(r *Config, want, absent float64) {
	if got := c.Config.Float("query_pre_attn_scalar", absent, 0, maxWidth); got != want && c.Config.Err() == nil {
		c.Config.Fail("query_pre_attn_scalar", "is %g; GGUF readers take %g for %s", got, want, c.Class)
	}
}

func specGemma3(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves)
	if h.windowed == nil && h.window > 0 {
		h.windowed = periodic(h.layers, k.Int("attention.sliding_window_pattern", gemma3Period, 1, model.MaxLayers))
	}
	local := h.rope.Unscaled(k.Float("rope.freq_base_swa", 10000, 0, math.MaxFloat32))
	softcap := float32(k.Float("final_logit_softcapping", 0, -1, model.MaxWidth))
	scale := attention.Scale(gemma3ScaleDim(h.layers, h.dim, max(h.heads, 1), h.headDim))
	spec := h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		a := h.attention(b, model.Optional, model.Optional)
		a.Scale = scale
		h.headNorms(b, a)
		if h.windowOf(i) > 0 {
			a.RoPE = local
		}
		b.Residual(model.Residual{Pre: norm, Branch: a.Branch(), Post: h.norm(b, "post_attention_norm")})
		b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlp(b, model.GELU, model.Absent).Branch(),
			Post: h.norm(b, "post_ffw_norm")})
	})
	spec.Outer = func(b *model.Loader) model.Ends {
		return model.Ends{EmbedScale: float32(math.Sqrt(float64(h.dim))), Norm: h.norm(b, "output_norm"), Softcap: softcap}
	}
	return spec
}

// periodic is which of n layers have a window where every period-th has none.
func periodic(n, period int) []bool {
	windowed := make([]bool, n)
	for i := range windowed {
		windowed[i] = (i+1)%period != 0
	}
	return windowed
}
