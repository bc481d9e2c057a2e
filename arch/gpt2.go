package arch

import (
	"fmt"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// GPT-2 (Radford et al., 2019): learned positions in the place of RoPE, LayerNorm, q, k and v in one linear, an MLP of
// GELU, biases everywhere; checkpoints have the linears' weights transposed.
func init() {
	register(&Family{Name: "gpt2", Classes: []string{"GPT2LMHeadModel"}, Convert: convertGPT2,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			h.rope = nil
			spec := h.spec(func(b *model.Loader, i int) {
				h.sequential(b, h.jointAttention(b, model.Required, model.Required), h.plainMLP(b, model.Required))
			})
			spec.Outer = func(b *model.Loader) model.Ends {
				ends := model.Ends{Norm: h.norm(b, "output_norm")}
				if table := b.Values("position_embd.weight", model.RoleKept, model.Required, h.context, h.dim); table != nil {
					ends.Positions = tensor.FromSlice(h.context, h.dim, table)
				}
				return ends
			}
			return spec
		},
	})
}

func convertGPT2(c *Conversion) {
	r := c.Read(Defaults{Heads: 12, Vocab: 50257, Context: 1024, Eps: 1e-5, Tied: true, Act: "gelu_new"})
	r.LayerNorm = true
	r.KVHeads = r.Heads
	o := c.Config
	// n_positions is the class's name, n_ctx one that old configurations have for the same.
	r.Context = o.Int(c.alias("n_positions", "max_position_embeddings", "n_ctx"), 1024, 1, maxContext)
	o.Has("n_ctx")
	r.FFN = o.Int(c.alias("n_inner", "intermediate_size"), 4*r.Dim, 1, maxWidth)
	c.wantPlainGELU(r)
	c.wantHeadDim(r)
	if !o.Bool("scale_attn_weights", true) {
		c.Refuse("scale_attn_weights", "GGUF readers divide scores by the root of the head's size")
	}
	c.wantFalse("scale_attn_by_inverse_layer_idx", "add_cross_attention")
	o.Has("reorder_and_upcast_attn") // the order of rounding alone
	if o.Err() != nil {
		return
	}
	c.SetBase(r, nil)
	root := ""
	if c.Has("transformer.wte.weight") {
		root = "transformer."
	}
	c.EmbeddingsFrom(root+"wte.weight", r)
	c.Tensor("position_embd.weight", root+"wpe.weight", r.Context, r.Dim)
	for i := range r.Layers {
		l := c.LayerAt(i, fmt.Sprintf("%sh.%d.", root, i))
		l.BiasedNorm("attn_norm", "ln_1", r.Dim)
		l.Conv1D("attn_qkv", "attn.c_attn", 3*r.Dim, r.Dim)
		l.Conv1D("attn_output", "attn.c_proj", r.Dim, r.Dim)
		l.BiasedNorm("ffn_norm", "ln_2", r.Dim)
		l.Conv1D("ffn_up", "mlp.c_fc", r.FFN, r.Dim)
		l.Conv1D("ffn_down", "mlp.c_proj", r.Dim, r.FFN)
	}
	c.finalNorm(root+"ln_f", r.Dim)
	c.Output(r, headName)
}

// Conv1D declares a linear with its bias whose weight the checkpoint has transposed, in×out.
func (l *Layer) Conv1D(name, from string, out, in int) {
	p := l.c.part(l.hf+from+".weight", in, out)
	p.Count, p.Transposed, p.In, p.Out = out, true, in, out
	l.c.add(l.gguf+name+".weight", []int{out, in}, p)
	l.Tensor(name+".bias", from+".bias", out)
}
