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
	r := c.Read(Defaults{Context: 131072, Heads: 8, HeadDim: 256, KVHeads: 4, Vocab: 262208, Theta: 1e6, Tied: true, Act: "gelu_pytorch_tanh"})
	r.FFN = c.readFFN()
	c.wantGELU(r)
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{Local: true})
	if p := o.Object("rope_parameters"); len(p.Keys()) > 0 && !p.Has("full_attention") && !p.Has("sliding_attention") {
		c.Refuse("rope_parameters", "the class reads what is in full_attention and sliding_attention")
	}
	if rope.local = c.localTheta(); rope.local == 0 {
		rope.local = 10000
	}
	c.wantFalse("attention_bias")
	window := o.Int("sliding_window", 4096, 1, maxContext)
	period := o.Int(c.alias("sliding_window_pattern", "_sliding_window_pattern"), gemma3Period, 1, maxLayers)
	types := c.LayerTypes(r.Layers)
	c.wantScale(r, float64(gemmaScaleDim(r.Layers, r.Dim, r.Heads, r.HeadDim, gemma3Largest)), 256)
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
	c.setPattern(c.windowedLayers(r.Layers, period), gemma3Period)
	c.CutEmbeddings("model.embed_tokens.weight", r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim).Plus(1)
		l.attention(r, false, false)
		l.headNorms(r).Plus(1)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim).Plus(1)
		l.Norm("ffn_norm", "pre_feedforward_layernorm", r.Dim).Plus(1)
		l.gatedMLP(r, false)
		l.Norm("post_ffw_norm", "post_feedforward_layernorm", r.Dim).Plus(1)
	}
	Tensors{c.Tensor("output_norm.weight", "model.norm.weight", r.Dim)}.Plus(1)
	c.Output(r, headName)
}

func specGemma3(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves)
	h.readPattern(gemma3Period)
	local := h.rope.Unscaled(k.Float("rope.freq_base_swa", 10000, 0, math.MaxFloat32))
	softcap := float32(k.Float("final_logit_softcapping", 0, -1, model.MaxWidth))
	scale := attention.Scale(gemmaScaleDim(h.layers, h.dim, max(h.heads, 1), h.headDim, gemma3Largest))
	return h.embedScaled(h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		a := h.attention(b, model.Optional, model.Absent)
		a.Scale = scale
		h.headNorms(b, a)
		if h.windowOf(i) > 0 {
			a.RoPE = local
		}
		b.Residual(model.Residual{Pre: norm, Branch: a.Branch(), Post: h.norm(b, "post_attention_norm")})
		h.gemmaMLP(b)
	}), softcap)
}
