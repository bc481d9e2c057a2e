package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Phi-3 (arXiv:2404.14219) and Phi-4 (arXiv:2412.08905, arXiv:2503.01743): q, k and v in one linear, gate and up in
// another, and LongRoPE, which divides the frequencies by other factors in long sequences than in short ones.
func init() {
	register(&Family{
		Name:    "phi3",
		Classes: []string{"Phi3ForCausalLM"},
		Convert: convertPhi3,
		Spec:    specPhi3,
	})
}

func convertPhi3(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, Vocab: 32064, Context: 4096, Eps: 1e-5})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	c.wantHeadDim(r)
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention", Partial: true, Long: true})
	if o.Err() == nil && rope.kind != "default" && rope.kind != "longrope" {
		o.Fail("rope_scaling", "is of type %s; supported for %s: default, longrope", rope.kind, c.Class)
	}
	if o.Err() != nil {
		return
	}
	original := o.Int("original_max_position_embeddings", 4096, 1, maxContext)
	if rope.scaling != nil {
		original = c.original(rope, 4096)
	}
	long, short, magnitude := c.longRoPE(r, rope, original)
	window := o.Int("sliding_window", 0, 0, maxContext)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	c.SetInt("rope.scaling.original_context_length", original)
	if long != nil {
		c.SetFloat("rope.scaling.attn_factor", magnitude)
	}
	c.SetInt("rope.dimension_count", rope.dims)
	c.SetFloat("rope.freq_base", rope.theta)
	c.SetInt("attention.sliding_window", window) // 0 tells readers of Phi-4
	c.Embeddings(r)
	if long != nil {
		c.Values("rope_factors_long.weight", long)
		c.Values("rope_factors_short.weight", short)
	}
	kv := r.KVHeads * r.HeadDim
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.Linear("attn_qkv", "self_attn.qkv_proj", r.Dim+2*kv, r.Dim, false)
		l.Linear("attn_output", "self_attn.o_proj", r.Dim, r.Dim, false)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.Linear("ffn_up", "mlp.gate_up_proj", 2*r.FFN, r.Dim, false)
		l.Linear("ffn_down", "mlp.down_proj", r.Dim, r.FFN, false)
	}
	c.Head(r)
}

// longRoPE reads LongRoPE's factors, nil if there are none, and what the rotated elements are multiplied by.
func (c *Conversion) longRoPE(r *Config, e *rope, original int) (long, short []float32, magnitude float64) {
	if e.kind != "longrope" {
		return nil, nil, 1
	}
	factors := func(key string) []float32 {
		list := e.scaling.Floats(key)
		if len(list) != e.dims/2 && c.Config.Err() == nil {
			e.scaling.Fail(key, "has %d elements, want %d, one for each pair", len(list), e.dims/2)
		}
		out := make([]float32, len(list))
		for i, f := range list {
			if out[i] = float32(f); !(f > 0) {
				e.scaling.Fail(key, "has %g, want positive numbers", f)
			}
		}
		return out
	}
	long, short = factors("long_factor"), factors("short_factor")
	magnitude = 1
	if scale := float64(r.Context) / float64(original); scale > 1 && original > 1 {
		magnitude = math.Sqrt(1 + math.Log(scale)/math.Log(float64(original)))
	}
	e.scaling.Has("factor") // follows from the contexts
	return long, short, e.scaling.Float("attention_factor", magnitude, 0, maxWidth)
}

func specPhi3(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves).dense(k)
	spec := h.spec(func(b *model.Loader, i int) {
		attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
		b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
		b.Residual(model.Residual{Pre: mlp, Branch: h.fusedMLP(b, model.SiLU).Branch()})
	})
	outer := spec.Outer
	spec.Outer = func(b *model.Loader) model.Ends {
		b.SetFactors(h.rope, "rope_factors_short.weight", model.Optional)
		long := h.rope.WithBase(h.rope.Base)
		if b.SetFactors(long, "rope_factors_long.weight", model.Optional); long.Factors != nil {
			h.rope.Long = long
		}
		return outer(b)
	}
	return spec
}
