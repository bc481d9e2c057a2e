package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// OLMo 2 (arXiv:2501.00656) normalises what attention and MLP add instead of what they see, and queries and keys over
// their full width. OLMo 3 (arXiv:2512.13961) gives three of four layers a window and plain RoPE, the fourth YaRN.
func init() {
	register(&Family{
		Name:    "olmo2",
		Classes: []string{"Olmo2ForCausalLM", "Olmo3ForCausalLM"},
		Convert: convertOLMo2,
		Spec:    specOLMo2,
	})
}

// olmo3Period: of so many layers the last has no window, where the metadata or config.json do not say.
const olmo3Period = 4

func convertOLMo2(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, Vocab: 50304, Context: 2048, Eps: 1e-5})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	c.wantFalse("attention_bias")
	c.wantHeadDim(r)
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{Local: c.Class == "Olmo3ForCausalLM"})
	third := c.Class == "Olmo3ForCausalLM"
	if third {
		rope.local = c.localTheta()
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	if third && (o.Has("sliding_window") || !o.Present("sliding_window")) {
		c.SetInt("attention.sliding_window", o.Int("sliding_window", 4096, 1, maxContext))
		c.Set("attention.sliding_window_pattern", c.windowedLayers(r.Layers, olmo3Period))
	}
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.attention(r, false, false)
		l.Norm("attn_q_norm", "self_attn.q_norm", r.Heads*r.HeadDim)
		l.Norm("attn_k_norm", "self_attn.k_norm", r.KVHeads*r.HeadDim)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim)
		l.gatedMLP(r, false)
		l.Norm("post_ffw_norm", "post_feedforward_layernorm", r.Dim)
	}
	c.UntiedHead(r, headName)
}

func specOLMo2(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves).dense(k)
	h.readPattern(olmo3Period)
	local := h.rope.Unscaled(k.Float("rope.freq_base_swa", h.rope.Base, 0, math.MaxFloat32))
	return h.spec(func(b *model.Loader, i int) {
		a := h.attention(b, model.Optional, model.Absent)
		a.QNorm, a.KNorm = b.Norm("attn_q_norm", a.Heads*a.HeadDim, h.eps), b.Norm("attn_k_norm", a.KVHeads*a.HeadDim, h.eps)
		if h.windowOf(i) > 0 {
			a.RoPE = local
		}
		b.Residual(model.Residual{Branch: a.Branch(), Post: h.norm(b, "post_attention_norm")})
		b.Residual(model.Residual{Branch: h.mlp(b, model.SiLU, model.Absent).Branch(), Post: h.norm(b, "post_ffw_norm")})
	})
}
