package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Gemma (arXiv:2403.08295): embeddings times √D, GELU in the tanh form, norms that multiply by 1+w. Gemma 2
// (arXiv:2408.00118) has norms after attention and MLP too, caps scores and logits, and gives every other layer a window.
func init() {
	register(&Family{
		Name:    "gemma",
		Classes: []string{"GemmaForCausalLM"},
		Convert: func(c *Conversion) {
			convertGemma(c, Defaults{Context: 8192, Heads: 16, KVHeads: 16, HeadDim: 256, Vocab: 256000, Tied: true, Act: "gelu_pytorch_tanh"}, false)
		},
		Spec: specGemma,
	})
	register(&Family{
		Name:    "gemma2",
		Classes: []string{"Gemma2ForCausalLM"},
		Convert: func(c *Conversion) {
			convertGemma(c, Defaults{Context: 8192, Heads: 8, KVHeads: 4, HeadDim: 256, Vocab: 256000, Tied: true, Act: "gelu_pytorch_tanh"}, true)
		},
		Spec: specGemma2,
	})
	tokenizes(&Tokenizer{IDs: []SpecialID{{Kind: "eot", ID: 107}}}, "GemmaForCausalLM") // <end_of_turn>
}

const (
	// gemma2Period: of so many layers the last has no window, where the metadata do not say.
	gemma2Period = 2
	// gemma2Window, gemma2ScoreCap and gemma2LogitCap hold where the metadata, or config.json, do not say.
	gemma2Window   = 4096
	gemma2ScoreCap = 50
	gemma2LogitCap = 30
	// gemma2Largest and gemma3Largest are the layers of the models of 27 billion parameters.
	gemma2Largest, gemma3Largest = 46, 62
)

func convertGemma(c *Conversion, d Defaults, second bool) {
	r := c.Read(d)
	r.FFN = c.readFFN()
	c.wantGELU(r)
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{})
	c.wantFalse("attention_bias")
	if second {
		c.wantScale(r, float64(gemmaScaleDim(r.Layers, r.Dim, r.Heads, r.HeadDim, gemma2Largest)), 256)
		if o.Present("attn_logit_softcapping") && !o.Has("attn_logit_softcapping") {
			c.Refuse("attn_logit_softcapping", "GGUF readers always cap Gemma 2's attention")
		}
		if o.Present("final_logit_softcapping") && !o.Has("final_logit_softcapping") {
			c.Refuse("final_logit_softcapping", "GGUF readers always cap Gemma 2's logits")
		}
	}
	if o.Bool("use_bidirectional_attention", false) {
		c.Refuse("use_bidirectional_attention", "GGUF readers attend to what comes before a token alone")
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	c.setHeadDim(r)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	if rope.theta != 10000 || rope.kind != "default" { // the converter says nothing; its readers take what is said
		c.setScaling(rope)
	}
	if second {
		c.SetFloat("attn_logit_softcapping", o.Float("attn_logit_softcapping", gemma2ScoreCap, 0, maxWidth))
		c.SetFloat("final_logit_softcapping", o.Float("final_logit_softcapping", gemma2LogitCap, 0, maxWidth))
		c.SetInt("attention.sliding_window", o.Int("sliding_window", gemma2Window, 1, maxContext))
		c.setPattern(c.windowedLayers(r.Layers, gemma2Period), gemma2Period)
	}
	c.CutEmbeddings("model.embed_tokens.weight", r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim).Plus(1)
		l.attention(r, false, false)
		if second {
			l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim).Plus(1)
			l.Norm("ffn_norm", "pre_feedforward_layernorm", r.Dim).Plus(1)
		} else {
			l.Norm("ffn_norm", "post_attention_layernorm", r.Dim).Plus(1)
		}
		l.gatedMLP(r, false)
		if second {
			l.Norm("post_ffw_norm", "post_feedforward_layernorm", r.Dim).Plus(1)
		}
	}
	Tensors{c.Tensor("output_norm.weight", "model.norm.weight", r.Dim)}.Plus(1)
	c.tiedOutput(r)
}

// gemmaScaleDim is the dimension d of the attention's scale 1/√d that GGUF readers take: a head's, but for the model of
// 27 billion parameters, which they know by its layers.
func gemmaScaleDim(layers, dim, heads, headDim, largest int) int {
	if layers == largest {
		return dim / heads
	}
	return headDim
}

func specGemma(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves).dense(k)
	return h.embedScaled(h.spec(func(b *model.Loader, i int) {
		attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
		b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
		b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.GELU, model.Absent).Branch()})
	}), 0)
}

func specGemma2(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves).dense(k)
	if !k.Has("attention.sliding_window") {
		h.window = gemma2Window
	}
	h.readPattern(gemma2Period)
	scoreCap := float32(k.Float("attn_logit_softcapping", gemma2ScoreCap, 0, model.MaxWidth))
	logitCap := float32(k.Float("final_logit_softcapping", gemma2LogitCap, 0, model.MaxWidth))
	local := h.rope
	if k.Has("rope.freq_base_swa") {
		local = h.rope.WithBase(k.Float("rope.freq_base_swa", 0, 0, math.MaxFloat32))
	}
	scale := attention.Scale(gemmaScaleDim(h.layers, h.dim, max(h.heads, 1), h.headDim, gemma2Largest))
	return h.embedScaled(h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		a := h.attention(b, model.Optional, model.Absent)
		a.Scale, a.Softcap = scale, scoreCap
		if h.windowOf(i) > 0 {
			a.RoPE = local
		}
		b.Residual(model.Residual{Pre: norm, Branch: a.Branch(), Post: h.norm(b, "post_attention_norm")})
		h.gemmaMLP(b)
	}), logitCap)
}

// gemmaMLP adds an MLP with norms before and after it.
func (h *hyper) gemmaMLP(b *model.Loader) {
	b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlp(b, model.GELU, model.Absent).Branch(), Post: h.norm(b, "post_ffw_norm")})
}
