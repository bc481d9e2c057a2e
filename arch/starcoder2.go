package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// StarCoder2 (Lozhkov et al., arXiv:2402.19173): LayerNorm, an MLP of GELU without a gate, biases everywhere, and a
// sliding window in some sizes, which llama.cpp does not read.
func init() {
	register(&Family{Name: "starcoder2", Unwindowed: true, Classes: []string{"Starcoder2ForCausalLM"}, Convert: convertStarcoder2,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				h.sequential(b, h.jointAttention(b, model.Optional, model.Required), h.plainMLP(b, model.Required))
			})
		},
	})
	tokenizes(&Tokenizer{Pre: "starcoder"}, "Starcoder2ForCausalLM")
}

func convertStarcoder2(c *Conversion) {
	r := c.Read(Defaults{Heads: 24, KVHeads: 2, Vocab: 49152, Context: 4096, Eps: 1e-5, Tied: true,
		Act: "gelu_pytorch_tanh"})
	r.LayerNorm = true
	o := c.Config
	r.FFN = o.Int("intermediate_size", 12288, 1, maxWidth)
	c.wantPlainGELU(r)
	rope := c.readRoPE(r, ropeOptions{})
	c.wantHeadDim(r)
	bias := o.Bool("use_bias", true)
	window := o.Int("sliding_window", 0, 1, maxContext)
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	if window > 0 {
		c.SetInt("attention.sliding_window", window)
	}
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.BiasedNorm("attn_norm", "input_layernorm", r.Dim)
		q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, bias)
		l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, bias)
		l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, bias)
		l.ZeroBias("attn_output", "self_attn.o_proj", r.Dim, q, bias)
		l.BiasedNorm("ffn_norm", "post_attention_layernorm", r.Dim)
		l.ZeroBias("ffn_up", "mlp.c_fc", r.FFN, r.Dim, bias)
		l.ZeroBias("ffn_down", "mlp.c_proj", r.Dim, r.FFN, bias)
	}
	c.finalNorm("model.norm", r.Dim)
	c.Output(r, headName)
}
