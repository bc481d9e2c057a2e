package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Llama (Touvron et al., arXiv:2302.13971; Dubey et al., arXiv:2407.21783) and Mistral (Jiang et al., arXiv:2310.06825).
func init() {
	register(&Family{
		Name:    "llama",
		Classes: []string{"LlamaForCausalLM", "MistralForCausalLM"},
		Convert: convertLlama,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs).dense(k)
			spec := h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Optional).Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Optional).Branch()})
			})
			spec.Outer = func(b *model.Loader) model.Ends {
				b.SetFactors(h.rope, "rope_freqs.weight", model.Optional)
				return model.Ends{Norm: h.norm(b, "output_norm")}
			}
			return spec
		},
	})
}

// mistralWindow is what the transformers library takes for a Mistral model whose config.json does not say; null says
// none.
const mistralWindow = 4096

func convertLlama(c *Conversion) {
	r := c.Read(Defaults{})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Factors: true})
	var attnBias, mlpBias bool
	window := 0
	if c.Class == "MistralForCausalLM" {
		if window = c.Config.Int("sliding_window", 0, 1, maxContext); !c.Config.Present("sliding_window") {
			window = mistralWindow
		}
	} else {
		attnBias, mlpBias = c.Config.Bool("attention_bias", false), c.Config.Bool("mlp_bias", false)
	}
	if c.Config.Err() != nil {
		return
	}
	c.SetCommon(r)
	c.setHeadDim(r)
	if window > 0 {
		c.SetInt("attention.sliding_window", window)
	}
	c.SetInt("vocab_size", r.Vocab)
	c.setRoPE(rope, true)
	c.Embeddings(r)
	c.ropeFactors(rope)
	c.llamaLayers(r, rope, attnBias, mlpBias)
	c.Head(r)
}

// llamaLayers declares layers as Llama has them: the rows of q and k in the order of GGUF's pairs.
func (c *Conversion) llamaLayers(r *Config, rope *rope, attnBias, mlpBias bool) {
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, attnBias).Permute(r.HeadDim, rope.dims)
		l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, attnBias).Permute(r.HeadDim, rope.dims)
		l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, attnBias)
		l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, attnBias)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.gatedMLP(r, mlpBias)
	}
}

// gatedMLP declares an MLP under the usual names.
func (l *Layer) gatedMLP(r *Config, bias bool) {
	l.Linear("ffn_gate", "mlp.gate_proj", r.FFN, r.Dim, bias)
	l.Linear("ffn_up", "mlp.up_proj", r.FFN, r.Dim, bias)
	l.Linear("ffn_down", "mlp.down_proj", r.Dim, r.FFN, bias)
}

// attention declares split q, k, v and o under the usual names, in the checkpoint's order of rows.
func (l *Layer) attention(r *Config, qkvBias, outBias bool) {
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, qkvBias)
	l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, qkvBias)
	l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, qkvBias)
	l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, outBias)
}

// headNorms declares norms of the heads of q and k.
func (l *Layer) headNorms(r *Config) Tensors {
	return append(l.Norm("attn_q_norm", "self_attn.q_norm", r.HeadDim), l.Norm("attn_k_norm", "self_attn.k_norm", r.HeadDim)...)
}
