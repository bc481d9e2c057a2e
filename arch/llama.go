package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Llama (Touvron et al., arXiv:2302.13971; Dubey et al., arXiv:2407.21783), Mistral (Jiang et al., arXiv:2310.06825) and
// Mixtral (arXiv:2401.04088), which has experts in the place of the MLP.
func init() {
	register(&Family{
		Name:    "llama",
		Classes: []string{"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"},
		Convert: convertLlama,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs)
			h.expertFFN = h.ffn // readers ask for no other
			spec := h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Optional).Branch()})
				if h.experts > 0 {
					moe := h.moe(b)
					moe.Normalize = true
					b.Residual(model.Residual{Pre: mlp, Branch: moe.Branch()})
					return
				}
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Optional).Branch()})
			})
			spec.Outer = func(b *model.Loader) model.Ends {
				b.SetFactors(h.rope, "rope_freqs.weight", model.Optional)
				return model.Ends{Norm: h.norm(b, "output_norm")}
			}
			return spec
		},

		Unwindowed: true,
	})
	const codeLlama = 32016 // tokens of the vocabulary that has those for infilling, and ▁<EOT>
	tokenizes(&Tokenizer{PrefixSaid: true, IDs: []SpecialID{{Kind: "eot", ID: 32010, Size: codeLlama}}},
		"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
}

// mistralWindow is what the transformers library takes for a Mistral model whose config.json does not say; null says
// none.
const mistralWindow = 4096

func convertLlama(c *Conversion) {
	defaults := map[string]Defaults{"MixtralForCausalLM": {Context: 131072, Eps: 1e-5, KVHeads: 8, Theta: 1e6},
		"MistralForCausalLM": {Context: 131072, KVHeads: 8}}
	r := c.Read(defaults[c.Class])
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Factors: true})
	var attnBias, mlpBias bool
	window, experts, used := 0, 0, 0
	switch c.Class {
	case "MixtralForCausalLM":
		experts = c.Config.Int("num_local_experts", 8, 1, maxWidth)
		used = c.Config.Int("num_experts_per_tok", 2, 1, max(experts, 1))
		window = c.Config.Int("sliding_window", 0, 1, maxContext)
	case "MistralForCausalLM":
		if window = c.Config.Int("sliding_window", 0, 1, maxContext); !c.Config.Present("sliding_window") {
			window = mistralWindow
		}
	default:
		attnBias, mlpBias = c.Config.Bool("attention_bias", false), c.Config.Bool("mlp_bias", false)
	}
	if c.Config.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	if window > 0 {
		c.SetInt("attention.sliding_window", window)
	}
	if experts > 0 {
		c.SetExperts(experts, used, 0)
	}
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", rope.dims)
	c.Embeddings(r)
	c.ropeFactors(rope)
	c.plainLayers(r, rope, attnBias, mlpBias, experts)
	c.Head(r)
}
