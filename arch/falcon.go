package arch

import (
	"fmt"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Falcon (Almazrouei et al., arXiv:2311.16867): attention beside an MLP of GELU, after one LayerNorm (7B, 11B) or one each
// (40B, 180B); q, k and v in one linear, key head by key head, of which the older generation has one.
func init() {
	register(&Family{Name: "falcon", Classes: []string{"FalconForCausalLM", "RWForCausalLM"}, Convert: convertFalcon,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				mlpNorm := h.norm(b, "attn_norm")
				attnNorm := mlpNorm
				if b.Has("attn_norm_2.weight") {
					attnNorm = h.norm(b, "attn_norm_2")
				}
				parallel(b, attnNorm, h.jointAttention(b, model.Optional, model.Absent), mlpNorm, h.plainMLP(b, model.Absent))
			})
		},
	})
}

// falconContext is what llama.cpp's converter says of all Falcon models.
const falconContext = 2048

func convertFalcon(c *Conversion) {
	r := c.Read(Defaults{Heads: 71, Vocab: 65024, Context: falconContext, Eps: 1e-5, Tied: true, Act: "gelu"})
	r.LayerNorm = true
	o := c.Config
	r.Context = falconContext
	r.FFN = o.Int("ffn_hidden_size", 4*r.Dim, 1, maxWidth)
	r.Act = o.String("activation", "gelu")
	if c.wantPlainGELU(r); o.Err() != nil {
		return
	}
	rope := c.readRoPE(r, ropeOptions{})
	c.wantHeadDim(r)
	grouped := o.Bool("new_decoder_architecture", false)
	r.KVHeads = o.Int(c.alias("num_kv_heads", "n_head_kv"), r.Heads, 1, r.Heads)
	if o.Bool("multi_query", true) && !grouped {
		r.KVHeads = 1
	}
	if o.Err() == nil && r.Heads%r.KVHeads != 0 {
		o.Fail(c.alias("num_kv_heads", "n_head_kv"), "is %d, want a divisor of the number of heads, %d", r.KVHeads, r.Heads)
	}
	norms := 1
	if grouped {
		norms = 2
	}
	norms = o.Int("num_ln_in_parallel_attn", norms, 1, 2)
	c.wantFalse("alibi", "bias")
	if !o.Bool("parallel_attn", true) {
		c.Refuse("parallel_attn", "GGUF readers compute Falcon's attention beside the MLP")
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	c.Set("tensor_data_layout", "jploski")
	c.setUnusualRoPE(rope)
	c.EmbeddingsFrom("transformer.word_embeddings.weight", r)
	for i := range r.Layers {
		l := c.LayerAt(i, fmt.Sprintf("transformer.h.%d.", i))
		if norms == 2 {
			l.BiasedNorm("attn_norm", "ln_mlp", r.Dim)
			l.BiasedNorm("attn_norm_2", "ln_attn", r.Dim)
		} else {
			l.BiasedNorm("attn_norm", "input_layernorm", r.Dim)
		}
		l.Linear("attn_qkv", "self_attention.query_key_value", (r.Heads+2*r.KVHeads)*r.HeadDim, r.Dim, false).Rows(r.ungroup)
		l.Linear("attn_output", "self_attention.dense", r.Dim, r.Dim, false)
		l.Linear("ffn_up", "mlp.dense_h_to_4h", r.FFN, r.Dim, false)
		l.Linear("ffn_down", "mlp.dense_4h_to_h", r.Dim, r.FFN, false)
	}
	c.finalNorm("transformer.ln_f", r.Dim)
	c.Output(r, headName)
}

// ungroup gives for a row of q, k and v, each of which has its heads in order, the row where each key head comes after the
// query heads that share it, and its value head after that.
func (r *Config) ungroup(row int) int {
	group := r.Heads / r.KVHeads // query heads of a key head
	head, i := row/r.HeadDim, row%r.HeadDim
	switch {
	case head < r.Heads:
		head = head/group*(group+2) + head%group
	case head < r.Heads+r.KVHeads:
		head = (head-r.Heads)*(group+2) + group
	default:
		head = (head-r.Heads-r.KVHeads)*(group+2) + group + 1
	}
	return head*r.HeadDim + i
}
