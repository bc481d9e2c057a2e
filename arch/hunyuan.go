package arch

import (
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Hunyuan (github.com/Tencent-Hunyuan): heads are normalised after RoPE, whose base is stretched by an alpha; experts
// beside an MLP that sees all tokens.
func init() {
	register(&Family{
		Name:    "hunyuan-dense",
		Classes: []string{"HunYuanDenseV1ForCausalLM"},
		Convert: func(c *Conversion) { convertHunyuan(c, false) },
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			return h.withFactors(h.spec(func(b *model.Loader, i int) {
				h.hunyuanAttention(b)
				b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			}))
		},
	})
	register(&Family{
		Name:    "hunyuan-moe",
		Classes: []string{"HunYuanMoEV1ForCausalLM"},
		Convert: func(c *Conversion) { convertHunyuan(c, true) },
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			h.expertFFN = h.ffn // as readers have it
			shared := k.Int("expert_shared_feed_forward_length", 0, 0, model.MaxWidth)
			if shared == 0 {
				shared = h.ffn
			}
			return h.spec(func(b *model.Loader, i int) {
				h.hunyuanAttention(b)
				norm := h.norm(b, "ffn_norm")
				f := h.moe(b)
				f.Normalize = true
				f.Shared = h.mlpOf(b, "_shexp", shared, model.SiLU, model.Absent)
				b.Residual(model.Residual{Pre: norm, Branch: f.Branch()})
			})
		},
	})
	specials := append([]string{"<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"}, numbered("<|extra_%d|>", 205)...)
	tokenizes(&Tokenizer{Pre: "hunyuan-dense", Specials: specials, EOSKey: "eod_token_id", EOTListed: true}, "HunYuanDenseV1ForCausalLM")
	tokenizes(&Tokenizer{Pre: "hunyuan", Specials: specials, IDs: []SpecialID{{Kind: "bos", ID: 127959, Beyond: true}}}, "HunYuanMoEV1ForCausalLM")
}

func (h *hyper) hunyuanAttention(b *model.Loader) {
	norm := h.norm(b, "attn_norm")
	a := h.attention(b, model.Optional, model.Absent)
	h.headNorms(b, a)
	a.NormAfter = true
	b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
}

// hunyuanContext is the context that readers are told where RoPE's base is stretched: no member of config.json says it.
const hunyuanContext = 256 << 10

func convertHunyuan(c *Conversion, moe bool) {
	r := c.Read(Defaults{Heads: 32, Vocab: 290943, Context: 2048, Eps: 1e-5})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	c.wantFalse("attention_bias", "mlp_bias", "use_cla")
	o := c.Config
	if !o.Bool("use_qk_norm", true) {
		c.Refuse("use_qk_norm", "GGUF readers take norms of the heads for granted")
	}
	rope, alpha := c.hunyuanRoPE(r)
	var experts, used int
	if moe {
		experts, used = c.readHunyuanExperts(r)
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	if alpha {
		c.Set("rope.scaling.type", "none")
		c.SetFloat("rope.scaling.factor", 1)
		c.SetInt("rope.scaling.original_context_length", hunyuanContext)
		c.SetInt("context_length", hunyuanContext)
	}
	shared := r.FFN
	if moe {
		if shape := c.ShapeOf("model.layers.0.mlp.shared_mlp.gate_proj.weight"); len(shape) == 2 {
			shared = shape[0] // times num_shared_expert, or not
		}
		c.SetExperts(experts, used, r.FFN)
		c.SetInt("expert_shared_feed_forward_length", shared)
		c.SetInt("expert_shared_count", c.uniform(r, "num_shared_expert", 1, 1))
	} else {
		c.dropExperts()
	}
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, false, false)
		l.Norm("attn_q_norm", "self_attn.query_layernorm", r.HeadDim)
		l.Norm("attn_k_norm", "self_attn.key_layernorm", r.HeadDim)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if !moe {
			l.gatedMLP(r, false)
			continue
		}
		l.Linear("ffn_gate_inp", "mlp.gate.wg", experts, r.Dim, false)
		l.Experts("ffn_gate_exps", "mlp.experts.%d.gate_proj", experts, r.FFN, r.Dim)
		l.Experts("ffn_up_exps", "mlp.experts.%d.up_proj", experts, r.FFN, r.Dim)
		l.Experts("ffn_down_exps", "mlp.experts.%d.down_proj", experts, r.Dim, r.FFN)
		l.Linear("ffn_gate_shexp", "mlp.shared_mlp.gate_proj", shared, r.Dim, false)
		l.Linear("ffn_up_shexp", "mlp.shared_mlp.up_proj", shared, r.Dim, false)
		l.Linear("ffn_down_shexp", "mlp.shared_mlp.down_proj", r.Dim, shared, false)
	}
	c.Head(r)
}

// hunyuanRoPE reads RoPE. With dynamic scaling and an alpha its base is θ·alpha^(d/(d−2)) at any length.
func (c *Conversion) hunyuanRoPE(r *Config) (e *rope, alpha bool) {
	o := c.Config
	s := o.Object("rope_parameters")
	if s == nil {
		s = o.Object("rope_scaling")
	}
	if kind := s.String("rope_type", s.String("type", "")); (kind != "dynamic" && kind != "xdrope") || !s.Has("alpha") {
		return c.readRoPE(r, ropeOptions{}), false
	}
	a := s.Float("alpha", 1, 0, math.MaxFloat32)
	for _, name := range []string{"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"} {
		s.Has(name) // nothing reads them beside an alpha
	}
	theta := s.Float("rope_theta", o.Float("rope_theta", r.Theta, 1, math.MaxFloat32), 1, math.MaxFloat32)
	if o.Err() == nil && (r.HeadDim < 4 || r.HeadDim%2 != 0) {
		o.Fail("head_dim", "is %d, want an even number from 4 on", r.HeadDim)
	}
	d := float64(r.HeadDim)
	return &rope{kind: "default", dims: r.HeadDim, params: s, theta: theta * math.Pow(a, d/(d-2))}, true
}

// readHunyuanExperts reads what may be lists by layer, of which readers want all elements to be the same.
func (c *Conversion) readHunyuanExperts(r *Config) (experts, used int) {
	o := c.Config
	experts = o.Int("num_experts", 1, 1, maxWidth)
	used = c.uniform(r, "moe_topk", 1, 1)
	if ffn := c.uniform(r, "moe_intermediate_size", r.FFN, 1); ffn != r.FFN && o.Err() == nil {
		o.Fail("moe_intermediate_size", "is %d; GGUF readers want intermediate_size, %d", ffn, r.FFN)
	}
	if !o.Bool("use_mixed_mlp_moe", true) {
		c.Refuse("use_mixed_mlp_moe", "GGUF readers take an MLP beside the experts for granted")
	}
	if n := o.Int("moe_layer_num_skipped", 0, 0, maxLayers); n > 0 {
		c.Refuse("moe_layer_num_skipped", "GGUF readers take experts in all layers")
	}
	if !o.Bool("norm_topk_prob", true) {
		c.Refuse("norm_topk_prob", "GGUF readers divide the weights of a token's experts by their sum")
	}
	if o.Err() == nil && used > experts {
		o.Fail("moe_topk", "is %d, of %d experts", used, experts)
	}
	return experts, used
}

// uniform reads a member that is a number or a list with the same number for all layers.
func (c *Conversion) uniform(r *Config, key string, absent, lo int) int {
	o := c.Config
	if !o.IsList(key) {
		return o.Int(key, absent, lo, maxWidth)
	}
	list := o.Ints(key, lo, maxWidth)
	for i, n := range list {
		if i < r.Layers && n != list[0] {
			o.Fail(key, "has %d and %d; GGUF readers take the same for all layers", list[0], n)
		}
	}
	if len(list) == 0 {
		return absent
	}
	return list[0]
}

// dropExperts leaves out what SetBase has made of members about experts that a dense class does not read.
func (c *Conversion) dropExperts() {
	prefix := c.Family.Name + ".expert_"
	c.Metadata = slices.DeleteFunc(c.Metadata, func(kv gguf.KV) bool { return strings.HasPrefix(kv.Key, prefix) })
}
