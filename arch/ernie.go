package arch

import (
	"regexp"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// ERNIE 4.5 (ernie.baidu.com/blog/publication/ERNIE_Technical_Report.pdf): Llama with RoPE in pairs in the checkpoint too.
// The mixture of experts chooses by softmax and a bias, and has experts that see all tokens.
func init() {
	register(&Family{
		Name:    "ernie4_5",
		Classes: []string{"Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"},
		Convert: func(c *Conversion) {
			convertErnie(c, Defaults{Heads: 16, KVHeads: 2, HeadDim: 128, Vocab: 103424, Context: 131072, Eps: 1e-5, Theta: 5e5, Tied: true}, false)
		},
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs).dense(k)
			return h.spec(func(b *model.Loader, i int) {
				attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
				b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
				b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			})
		},
	})
	register(&Family{
		Name:    "ernie4_5-moe",
		Classes: []string{"Ernie4_5_MoeForCausalLM"},
		Convert: func(c *Conversion) {
			convertErnie(c, Defaults{Heads: 20, KVHeads: 4, Vocab: 103424, Context: 131072, Eps: 1e-5, Theta: 5e5, Tied: true}, true)
		},
		Spec: specErnieMoE,
	})
}

// ernieMTP matches the tensors that predict more than one token ahead.
var ernieMTP = regexp.MustCompile(`(^|\.)mtp_(block|emb_norm|hidden_norm|linear_proj)\.`)

// ernieExperts are the members of config.json about experts.
type ernieExperts struct{ n, used, ffn, shared, first int }

func convertErnie(c *Conversion, d Defaults, moe bool) {
	r := c.Read(d)
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	c.wantFalse("use_bias")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{})
	x := ernieExperts{first: r.Layers}
	if moe {
		x = c.readErnieExperts(r)
	}
	if o.Err() != nil {
		return
	}
	c.SkipAll(ernieMTP)
	c.SetBase(r, rope)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	if moe {
		c.SetExperts(x.n, x.used, x.ffn)
		c.SetInt("interleave_moe_layer_step", 1)
		c.SetInt("leading_dense_block_count", x.first)
		c.SetInt("expert_shared_count", x.shared)
		if x.shared > 0 {
			c.SetInt("expert_shared_feed_forward_length", x.ffn*x.shared)
		}
	}
	c.Embeddings(r)
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		if l.Has("self_attn.qkv_proj.weight") {
			l.Split("self_attn.qkv_proj", r.Dim, false, []string{"attn_q", "attn_k", "attn_v"}, []int{q, kv, kv})
			l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, false)
		} else {
			l.attention(r, false, false)
		}
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if i >= x.first {
			l.ernieExperts(r, x)
			continue
		}
		l.ernieMLP("", "mlp.", r.FFN, r.Dim)
	}
	c.Head(r)
}

func (c *Conversion) readErnieExperts(r *Config) ernieExperts {
	o := c.Config
	x := ernieExperts{n: o.Int("moe_num_experts", 64, 1, maxWidth)}
	x.used = o.Int("moe_k", 6, 1, max(x.n, 1))
	x.ffn = o.Int("moe_intermediate_size", 1536, 1, maxWidth)
	x.shared = o.Int("moe_num_shared_experts", 2, 0, maxWidth)
	x.first = o.Int("moe_layer_start_index", 1, 0, max(r.Layers, 0))
	if last := o.Int("moe_layer_end_index", -1, -1, maxLayers); last != -1 && last < r.Layers-1 {
		c.Refuse("moe_layer_end_index", "GGUF readers take experts in all layers up to the last")
	}
	if step := o.Int("moe_layer_interval", 1, 1, maxLayers); step != 1 {
		c.Refuse("moe_layer_interval", "GGUF readers take experts in all layers from the first that has some")
	}
	return x
}

// ernieMLP declares an MLP whose gate and up may be one tensor of the checkpoint.
func (l *Layer) ernieMLP(suffix, from string, ffn, dim int) {
	if l.Has(from + "up_gate_proj.weight") {
		l.Split(from+"up_gate_proj", dim, false, []string{"ffn_gate" + suffix, "ffn_up" + suffix}, []int{ffn, ffn})
	} else {
		l.Linear("ffn_gate"+suffix, from+"gate_proj", ffn, dim, false)
		l.Linear("ffn_up"+suffix, from+"up_proj", ffn, dim, false)
	}
	l.Linear("ffn_down"+suffix, from+"down_proj", dim, ffn, false)
}

func (l *Layer) ernieExperts(r *Config, x ernieExperts) {
	l.Linear("ffn_gate_inp", "mlp.gate", x.n, r.Dim, false)
	if bias := "mlp.moe_statics.e_score_correction_bias"; l.Has(bias) {
		l.Tensor("exp_probs_b.bias", bias, 1, x.n)
	}
	l.Experts("ffn_gate_exps", "mlp.experts.%d.gate_proj", x.n, x.ffn, r.Dim)
	l.Experts("ffn_up_exps", "mlp.experts.%d.up_proj", x.n, x.ffn, r.Dim)
	l.Experts("ffn_down_exps", "mlp.experts.%d.down_proj", x.n, r.Dim, x.ffn)
	if x.shared > 0 {
		l.ernieMLP("_shexp", "mlp.shared_experts.", x.ffn*x.shared, r.Dim)
	}
}

func specErnieMoE(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEPairs)
	first := k.Int("leading_dense_block_count", 0, 0, max(h.layers, 0))
	shared := k.Int("expert_shared_feed_forward_length", 0, 0, model.MaxWidth)
	if step := k.Int("interleave_moe_layer_step", -1, 0, model.MaxLayers); step != 1 && k.Err() == nil {
		k.Fail("interleave_moe_layer_step", "is %d; supported: 1", step)
	}
	return h.spec(func(b *model.Loader, i int) {
		attn, mlp := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
		b.Residual(model.Residual{Pre: attn, Branch: h.attention(b, model.Optional, model.Absent).Branch()})
		if i < first {
			b.Residual(model.Residual{Pre: mlp, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			return
		}
		f := h.moe(b)
		f.Normalize = true
		shape := []int{max(h.experts, 1)}
		if len(b.Shape("exp_probs_b.bias")) == 2 { // as the checkpoint has it
			shape = []int{1, shape[0]}
		}
		f.SelectionBias = b.Values("exp_probs_b.bias", model.RoleVector, model.Optional, shape...)
		if shared > 0 {
			f.Shared = h.mlpOf(b, "_shexp", shared, model.SiLU, model.Absent)
		}
		b.Residual(model.Residual{Pre: mlp, Branch: f.Branch()})
	})
}
