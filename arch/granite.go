package arch

import (
	"math"

	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Granite 3 and 4 (IBM, github.com/ibm-granite/granite-3.0-language-models): Llama with factors on embeddings, attention
// scores, what residual connections add, and logits, which are divided; and its mixture of experts, where the checkpoint
// has gate and up in one.
func init() {
	register(&Family{Name: "granite", Classes: []string{"GraniteForCausalLM", graniteHybrid},
		Takes: func(o *object.Object) bool { return takesGranite(o, "granite") }, Convert: convertGranite, Spec: specGranite})
	register(&Family{Name: "granitemoe", Classes: []string{"GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM", graniteHybrid},
		Takes: func(o *object.Object) bool { return takesGranite(o, "granitemoe") }, Convert: convertGranite, Spec: specGranite})
	tokenizes(&Tokenizer{Pre: "smollm", PrefixSaid: true}, "GraniteForCausalLM", "GraniteMoeForCausalLM")
}

// graniteScales are the factors.
type graniteScales struct{ embedding, attention, residual, logits float64 }

// readGraniteScales reads the factors. The class takes 1 where config.json is silent.
func (c *Conversion) readGraniteScales() graniteScales {
	o := c.Config
	return graniteScales{
		embedding: o.Float("embedding_multiplier", 1, 0, maxWidth), attention: o.Float("attention_multiplier", 1, 0, maxWidth),
		residual: o.Float("residual_multiplier", 1, 0, maxWidth), logits: o.Float("logits_scaling", 1, 0, maxWidth),
	}
}

func (c *Conversion) setGraniteScales(s graniteScales) {
	c.SetFloat("attention.scale", s.attention)
	c.SetFloat("embedding_scale", s.embedding)
	c.SetFloat("residual_scale", s.residual)
	c.SetFloat("logit_scale", s.logits)
}

func convertGranite(c *Conversion) {
	if c.Class == graniteHybrid {
		convertGraniteHybrid(c)
		return
	}
	r := c.Read(Defaults{})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{Factors: true})
	scales := c.readGraniteScales()
	bias := o.Bool("attention_bias", false)
	mlpBias := false
	experts, used, shared := 0, 0, 0
	if c.Family.Name == "granitemoe" {
		experts = o.Int("num_local_experts", 8, 1, maxWidth)
		used = o.Int("num_experts_per_tok", 2, 1, max(experts, 1))
		if c.Class == "GraniteMoeSharedForCausalLM" {
			shared = o.Int("shared_intermediate_size", 1024, 0, maxWidth)
		}
	} else {
		mlpBias = o.Bool("mlp_bias", false)
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	if experts > 0 {
		c.SetExperts(experts, used, 0)
	}
	if r.Heads*r.HeadDim != r.Dim {
		c.setHeadDim(r)
	}
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", rope.dims)
	c.setGraniteScales(scales)
	if shared > 0 {
		c.SetInt("expert_shared_feed_forward_length", shared)
	}
	c.Embeddings(r)
	c.ropeFactors(rope)
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, bias).Permute(r.HeadDim, rope.dims)
		l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, bias).Permute(r.HeadDim, rope.dims)
		l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, bias)
		l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, bias)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if experts == 0 {
			l.gatedMLP(r, mlpBias)
			continue
		}
		l.graniteExperts(r, experts, shared)
	}
	c.Head(r)
}

// graniteExperts declares Granite's experts and, unless shared is 0, the expert of all tokens, shared wide.
func (l *Layer) graniteExperts(r *Config, n, shared int) {
	const in, out = "block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"
	l.Linear("ffn_gate_inp", "block_sparse_moe.router.layer", n, r.Dim, false)
	l.FusedExperts("ffn_gate_exps", in, n, r.FFN, r.Dim, 0, 2*r.FFN, false)
	l.FusedExperts("ffn_up_exps", in, n, r.FFN, r.Dim, r.FFN, 2*r.FFN, false)
	l.FusedExperts("ffn_down_exps", out, n, r.Dim, r.FFN, 0, r.Dim, false)
	if shared > 0 {
		l.Split("shared_mlp.input_linear", r.Dim, false, []string{"ffn_gate_shexp", "ffn_up_shexp"}, []int{shared, shared})
		l.Linear("ffn_down_shexp", "shared_mlp.output_linear", r.Dim, shared, false)
	}
}

func specGranite(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEPairs)
	h.expertFFN = h.ffn // readers ask for no other
	shared := k.Int("expert_shared_feed_forward_length", 0, 0, model.MaxWidth)
	turned := k.Bool("rope.scaling.finetuned", true)
	residual := float32(k.Float("residual_scale", 0, -1, model.MaxWidth))
	embedding := float32(k.Float("embedding_scale", 0, -1, model.MaxWidth))
	logits := k.Float("logit_scale", math.NaN(), 0, model.MaxWidth)
	scale := float32(k.Float("attention.scale", 0, -1, model.MaxWidth))
	spec := h.spec(func(b *model.Loader, i int) {
		attn, ffn := h.norm(b, "attn_norm"), h.norm(b, "ffn_norm")
		a := h.attention(b, model.Optional, model.Optional)
		if scale != 0 {
			a.Scale = scale
		}
		if !turned {
			a.RoPE = nil
		}
		b.Residual(model.Residual{Pre: attn, Branch: a.Branch(), Scale: residual})
		if h.experts == 0 {
			b.Residual(model.Residual{Pre: ffn, Branch: h.mlp(b, model.SiLU, model.Optional).Branch(), Scale: residual})
			return
		}
		moe := h.moe(b)
		moe.Normalize = true
		if shared > 0 {
			moe.Shared = h.mlpOf(b, "_shexp", shared, model.SiLU, model.Absent)
		}
		b.Residual(model.Residual{Pre: ffn, Branch: moe.Branch(), Scale: residual})
	})
	spec.Outer = func(b *model.Loader) model.Ends {
		b.SetFactors(h.rope, "rope_freqs.weight", model.Optional)
		return model.Ends{EmbedScale: embedding, Norm: h.norm(b, "output_norm"), LogitScale: float32(1 / logits)}
	}
	return spec
}
