package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// EXAONE 3 (arXiv:2408.03541) is Llama under GPT-2's names. EXAONE 4 (arXiv:2507.11407) normalises what attention and MLP
// add, and the heads of queries and keys; its largest model has windows in three of four layers and no RoPE in the fourth.
func init() {
	register(&Family{
		Name:    "exaone",
		Classes: []string{"ExaoneForCausalLM"},
		Convert: convertExaone,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			// The files have both epsilons, and the norms are RMSNorms.
			h.layerNorm, h.eps = false, float32(k.Float("attention.layer_norm_rms_epsilon", math.NaN(), 0, 1))
			return h.withFactors(h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			}))
		},
	})
	register(&Family{
		Name:    "exaone4",
		Classes: []string{"Exaone4ForCausalLM"},
		Convert: convertExaone4,
		Spec:    specExaone4,
	})
	tokenizes(&Tokenizer{Pre: "exaone"}, "ExaoneForCausalLM")
	tokenizes(&Tokenizer{Pre: "exaone4"}, "Exaone4ForCausalLM")
}

// exaone4Largest is the number of layers by which readers know the model that has windows; exaone4Period of its layers
// the last has none.
const exaone4Largest, exaone4Period = 64, 4

func convertExaone(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, Vocab: 102400, Context: 2048, Eps: 1e-5, Tied: true})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	c.wantHeadDim(r)
	rope := c.readRoPE(r, ropeOptions{Factors: true})
	c.Config.Has("layer_norm_epsilon") // the same as rms_norm_eps, where there are both
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.SetFloat("attention.layer_norm_rms_epsilon", r.Eps)
	c.SetFloat("attention.layer_norm_epsilon", r.Eps)
	c.SetInt("rope.dimension_count", rope.dims)
	c.EmbeddingsFrom("transformer.wte.weight", r)
	c.ropeFactors(rope)
	kv := r.KVHeads * r.HeadDim
	for i := range r.Layers {
		l := c.LayerAt(i, layerName("transformer.h.%d.", i))
		l.Norm("attn_norm", "ln_1", r.Dim)
		l.Linear("attn_q", "attn.attention.q_proj", r.Dim, r.Dim, false)
		l.Linear("attn_k", "attn.attention.k_proj", kv, r.Dim, false)
		l.Linear("attn_v", "attn.attention.v_proj", kv, r.Dim, false)
		l.Linear("attn_output", "attn.attention.out_proj", r.Dim, r.Dim, false)
		l.Norm("ffn_norm", "ln_2", r.Dim)
		l.Linear("ffn_gate", "mlp.c_fc_0", r.FFN, r.Dim, false)
		l.Linear("ffn_up", "mlp.c_fc_1", r.FFN, r.Dim, false)
		l.Linear("ffn_down", "mlp.c_proj", r.Dim, r.FFN, false)
	}
	c.Tensor("output_norm.weight", "transformer.ln_f.weight", r.Dim)
	c.Output(r, headName)
}

func convertExaone4(c *Conversion) {
	r := c.Read(Defaults{Heads: 32, KVHeads: 32, Vocab: 102400, Context: 2048, Eps: 1e-5})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	c.wantHeadDim(r)
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention", Factors: true})
	window := o.Int("sliding_window", 0, 0, maxContext)
	windowed := c.exaone4Windows(r)
	switch {
	case o.Err() != nil:
		return
	case window > 0 && r.Layers != exaone4Largest:
		c.Refuse("sliding_window", "GGUF readers know windows in EXAONE 4 models of 64 layers alone")
	case window == 0 && r.Layers == exaone4Largest:
		o.Fail("sliding_window", "is missing; GGUF readers take windows for granted in a model of 64 layers")
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("vocab_size", r.Vocab)
	if window > 0 {
		c.SetInt("attention.sliding_window", window)
		c.Set("attention.sliding_window_pattern", windowed)
	}
	c.Embeddings(r)
	c.ropeFactors(rope)
	for i := range r.Layers {
		l := c.Layer(i)
		l.attention(r, false, false)
		l.headNorms(r)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim)
		l.gatedMLP(r, false)
		l.Norm("post_ffw_norm", "post_feedforward_layernorm", r.Dim)
	}
	c.Head(r)
}

// exaone4Windows reads which layers have a window: by layer_types, or by a pattern that is a period or names a kind of
// layer by a letter, L for those with a window.
func (c *Conversion) exaone4Windows(r *Config) []bool {
	const key = "sliding_window_pattern"
	o := c.Config
	if o.Err() != nil {
		return nil
	}
	if text, ok := o.Get(key); ok && text[0] == '"' && !o.Has("layer_types") {
		pattern := o.String(key, "")
		windowed := make([]bool, r.Layers)
		for i := range windowed {
			windowed[i] = pattern != "" && pattern[i%len(pattern)] == 'L'
		}
		return windowed
	}
	if o.Has("layer_types") {
		return c.windowedLayers(r.Layers, exaone4Period)
	}
	return periodic(r.Layers, max(1, o.Int(key, exaone4Period, 0, maxLayers)))
}

func specExaone4(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves).dense(k)
	largest := h.layers == exaone4Largest
	switch {
	case !largest: // readers do without windows
		h.window, h.windowed = 0, nil
	case h.window == 0:
		h.window = 4096
	}
	h.readPattern(exaone4Period)
	return h.withFactors(h.spec(func(b *model.Loader, i int) {
		a := h.attention(b, model.Optional, model.Absent)
		h.headNorms(b, a)
		if largest && h.windowOf(i) == 0 {
			a.RoPE = nil
		}
		b.Residual(model.Residual{Branch: a.Branch(), Post: h.norm(b, "post_attention_norm")})
		b.Residual(model.Residual{Branch: h.mlp(b, model.SiLU, model.Absent).Branch(), Post: h.norm(b, "post_ffw_norm")})
	}))
}
