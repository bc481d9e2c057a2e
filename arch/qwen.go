package arch

import (
	"slices"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Qwen2 (arXiv:2407.10671) and Qwen3 (arXiv:2505.09388), dense.
func init() {
	register(&Family{Name: "qwen2", Unwindowed: true, Classes: []string{"Qwen2ForCausalLM"},
		Convert: func(c *Conversion) { convertQwen(c, Defaults{Context: 32768, KVHeads: 32}, false) },
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			spec := h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Required, model.Absent).Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
			spec.Outer = func(b *model.Loader) model.Ends {
				return model.Ends{Norm: h.norm(b, "output_norm"), HeadBias: b.Vector("output.bias", h.vocab, model.Optional)}
			}
			return spec
		},
	})
	register(&Family{Name: "qwen3", Unwindowed: true, Classes: []string{"Qwen3ForCausalLM"},
		Convert: func(c *Conversion) { convertQwen(c, Defaults{Context: 32768, KVHeads: 32, HeadDim: 128}, true) },
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				b.Residual(h.qwen3Attention(b))
				b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
		},
	})
}

// qwen3Attention is attention with norms of heads, before a residual connection.
func (h *hyper) qwen3Attention(b *model.Loader) model.Residual {
	norm := h.norm(b, "attn_norm")
	a := h.attention(b, model.Optional, model.Optional)
	h.headNorms(b, a)
	return model.Residual{Pre: norm, Branch: a.Branch()}
}

func convertQwen(c *Conversion, d Defaults, headNorms bool) {
	r := c.Read(d)
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	if headNorms {
		c.wantFalse("attention_bias")
	}
	window, windowed := c.qwenWindow(r)
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setWindow(window, windowed)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.qwenAttention(r, headNorms)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.gatedMLP(r, false)
	}
	c.Head(r)
}

// qwenAttention declares Qwen2's attention, where q, k and v have biases, or Qwen3's, where heads have norms.
func (l *Layer) qwenAttention(r *Config, headNorms bool) {
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	l.Norm("attn_norm", "input_layernorm", r.Dim)
	l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, !headNorms)
	l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, !headNorms)
	l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, !headNorms)
	if headNorms {
		l.headNorms(r)
	}
	l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, false)
}

// qwenWindow reads the sliding window and which layers have it: those that layer_types names or, without it, those from
// max_window_layers on, where use_sliding_window is true.
func (c *Conversion) qwenWindow(r *Config) (window int, windowed []bool) {
	o := c.Config
	use := o.Bool("use_sliding_window", false)
	first := o.Int("max_window_layers", 28, 0, maxLayers)
	types := c.LayerTypes(r.Layers)
	if !use || o.Present("sliding_window") && !o.Has("sliding_window") {
		if slices.Contains(types, "sliding_attention") {
			o.Fail("layer_types", "has sliding_attention, but there is no window: see use_sliding_window and sliding_window")
		}
		return 0, nil
	}
	window = o.Int("sliding_window", 4096, 1, maxContext)
	windowed = make([]bool, r.Layers)
	for i := range windowed {
		if windowed[i] = i >= first; types != nil {
			windowed[i] = types[i] == "sliding_attention"
		}
	}
	return window, windowed
}
