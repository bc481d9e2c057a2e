package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// SmolLM3 (huggingface.co/blog/smollm3): Llama, but for every fourth layer, which has no RoPE (Yang et al.,
// arXiv:2501.18795).
func init() {
	register(&Family{
		Name:    "smollm3",
		Classes: []string{"SmolLM3ForCausalLM"},
		Convert: convertSmolLM3,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				a := h.attention(b, model.Optional, model.Absent)
				if (i+1)%smollm3Period == 0 {
					a.RoPE = nil
				}
				b.Residual(model.Residual{Pre: attn, Branch: a.Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
		},
	})
	tokenizes(&Tokenizer{PrefixSaid: true}, "SmolLM3ForCausalLM")
}

// smollm3Period: of so many layers the last has no RoPE, as readers take for granted.
const smollm3Period = 4

func convertSmolLM3(c *Conversion) {
	r := c.Read(Defaults{Heads: 16, KVHeads: 4, Vocab: 128256, Context: 32768, Theta: 2e6, Tied: true})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention"})
	c.wantFalse("attention_bias", "mlp_bias")
	period := o.Int("no_rope_layer_interval", smollm3Period, 1, maxLayers)
	rotates := o.Ints("no_rope_layers", 0, 1)
	if rotates == nil && period != smollm3Period {
		c.Refuse("no_rope_layer_interval", "GGUF readers take 4")
	}
	for i, yes := range rotates {
		if i < r.Layers && (yes == 1) != ((i+1)%smollm3Period != 0) {
			c.Refuse("no_rope_layers", "GGUF readers leave out RoPE in every fourth layer")
		}
	}
	types := c.LayerTypes(r.Layers)
	if o.Bool("use_sliding_window", false) && o.Has("sliding_window") {
		if windowed := c.windowedTypes(types, r.Layers); windowed {
			c.Refuse("sliding_window", "GGUF readers know no windows of SmolLM3")
		}
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", rope.dims)
	c.Embeddings(r)
	c.plainLayers(r, rope, false, false, 0)
	c.Head(r)
}

// windowedTypes says whether layer_types names a layer with a window, or is absent, in which case classes derive some.
func (c *Conversion) windowedTypes(types []string, layers int) bool {
	for _, t := range types[:min(layers, len(types))] {
		if t == "sliding_attention" {
			return true
		}
	}
	return types == nil
}
