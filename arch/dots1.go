package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// dots.llm1 (rednote-hilab, arXiv:2506.05767): attention with norms of heads, and DeepSeek-V3's experts, chosen by sigmoids with
// a bias, beside shared ones, after some dense layers.
func init() {
	register(&Family{Name: "dots1", Classes: []string{"Dots1ForCausalLM"}, Convert: convertDots1,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			s := h.readSigmoid(k)
			return h.spec(func(b *model.Loader, i int) {
				b.Residual(h.normedAttention(b))
				b.Residual(s.residual(h, b, "ffn_norm", model.Optional))
			})
		}})
}

func convertDots1(c *Conversion) {
	r := c.Read(Defaults{Context: 2048})
	o := c.Config
	r.FFN = o.Int("intermediate_size", 10944, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	m := c.readMixture(r, mixture{ffn: 1408, groups: 1, groupsUsed: 1})
	if o.Bool("attention_bias", false) {
		c.Refuse("attention_bias", "GGUF readers know no bias of this attention's output")
	}
	if r.KVHeads != r.Heads && o.Err() == nil {
		c.Refuse("num_key_value_heads", "GGUF readers take as many heads of keys as of queries")
	}
	c.refuseWindow(r, 4096, 62)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.setMixture(m)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.normedAttention(r, true)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.mixture(i, r, m)
	}
	c.OwnHead(r)
}

// refuseWindow refuses layers with a window that matters, of those that layer_types names or that are not the first. GGUF
// readers of the architecture know none.
func (c *Conversion) refuseWindow(r *Config, absent, absentFirst int) {
	o := c.Config
	first := o.Int("max_window_layers", absentFirst, 0, maxLayers)
	types := c.LayerTypes(r.Layers)
	if o.Present("sliding_window") && !o.Has("sliding_window") {
		return
	}
	window := o.Int("sliding_window", absent, 1, maxContext)
	for i := range r.Layers {
		if (types != nil && types[i] == "sliding_attention" || types == nil && i >= first) && window < r.Context && o.Err() == nil {
			o.Fail("sliding_window", "is %d in layer %d: GGUF readers know no windows for %s", window, i, c.Class)
		}
	}
}
