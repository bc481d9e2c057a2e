package arch

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Falcon-H1 (arXiv:2507.22448): attention beside Mamba-2 on one norm, then an MLP. The configuration has multipliers all
// over the place, which go into the weights.
func init() {
	register(&Family{Name: "falcon-h1", Classes: []string{"FalconH1ForCausalLM"}, Convert: convertFalconH1, Spec: specFalconH1})
	tokenizes(&Tokenizer{Pre: "falcon-h1"}, "FalconH1ForCausalLM")
}

// falconMultipliers are the multipliers.
type falconMultipliers struct {
	embedding, head, key, attentionIn, attentionOut, ssmIn, ssmOut float64
	mlp                                                            []float64 // of the gate's result, and of the MLP's
	ssm                                                            []float64 // of z, x, B, C, dt
}

func (c *Conversion) readFalconMultipliers() *falconMultipliers {
	o := c.Config
	one := func(key string) float64 { return o.Float(key, 1, -maxWidth, maxWidth) }
	list := func(key string, n int) []float64 {
		values := o.Floats(key)
		if values == nil {
			for range n {
				values = append(values, 1)
			}
		}
		if len(values) != n && o.Err() == nil {
			o.Fail(key, "has %d elements, want %d", len(values), n)
		}
		return values
	}
	return &falconMultipliers{embedding: one("embedding_multiplier"), head: one("lm_head_multiplier"), key: one("key_multiplier"),
		attentionIn: one("attention_in_multiplier"), attentionOut: one("attention_out_multiplier"),
		ssmIn: one("ssm_in_multiplier"), ssmOut: one("ssm_out_multiplier"), mlp: list("mlp_multipliers", 2), ssm: list("ssm_multipliers", 5)}
}

func convertFalconH1(c *Conversion) {
	r := c.Read(Defaults{Context: 8192, Eps: 1e-5, KVHeads: 8, Theta: 100000})
	r.FFN = c.readFFN()
	c.WantAct(r, "silu")
	o := c.Config
	rope := c.readRoPE(r, ropeOptions{})
	if rope.kind != "default" && o.Err() == nil {
		rope.scaling.Fail("rope_type", "is %q: GGUF readers do not scale RoPE for %s", rope.kind, c.Class)
	}
	m := c.readFalconMultipliers()
	if m.embedding == 0 && r.Tied && o.Err() == nil {
		c.Refuse("embedding_multiplier", "the head is tied to embeddings that it makes zero")
	}
	s := stateSpace{heads: o.Int("mamba_n_heads", 128, 1, maxWidth), groups: o.Int("mamba_n_groups", 1, 1, maxWidth),
		state: o.Int("mamba_d_state", 256, 1, maxWidth), width: o.Int("mamba_d_conv", 4, 1, maxWidth)}
	if s.inner = o.Int("mamba_d_ssm", 1024, 1, maxWidth); o.Present("mamba_d_ssm") && !o.Has("mamba_d_ssm") {
		s.inner = o.Int("mamba_expand", 2, 1, maxWidth) * r.Dim
	}
	if what := s.valid(); what != "" && o.Err() == nil {
		o.Fail("mamba_d_ssm", "%d %s (%d heads, %d groups)", s.inner, what, s.heads, s.groups)
	}
	if o.Has("mamba_d_head") && o.Excerpt("mamba_d_head") != `"auto"` && o.Int("mamba_d_head", 0, 1, maxWidth)*s.heads != s.inner {
		c.Refuse("mamba_d_head", "heads make another width than mamba_d_ssm")
	}
	for _, key := range []string{"attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"} {
		if o.Bool(key, false) {
			c.Refuse(key, "GGUF readers know no biases of these linears")
		}
	}
	norm := o.Bool("mamba_rms_norm", false)
	if o.Bool("mamba_norm_before_gate", true) && norm {
		c.Refuse("mamba_norm_before_gate", "GGUF readers normalise behind the gate")
	}
	convBias := o.Bool("mamba_conv_bias", true)
	c.wantTimeSteps("time_step_limit")
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.SetInt("attention.head_count_kv", r.KVHeads)
	c.setHeadDim(r)
	c.SetInt("vocab_size", r.Vocab)
	c.setStateSpace(&s)
	Tensors{c.EmbeddingsFrom("model.embed_tokens.weight", r)}.Times(float32(m.embedding))
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, false).Times(float32(m.attentionIn))
		l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, false).inTurn(m.key, m.attentionIn)
		l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, false).Times(float32(m.attentionIn))
		l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, false).Times(float32(m.attentionOut))
		in, out := l.mamba2("mamba.", r, &s, convBias, norm)
		in[0].Change = m.stateSpaceIn(&s)
		out.Times(float32(m.ssmOut))
		l.Tensor("ffn_norm", "pre_ff_layernorm.weight", r.Dim)
		l.Linear("ffn_gate", "feed_forward.gate_proj", r.FFN, r.Dim, false).Times(float32(m.mlp[0]))
		l.Linear("ffn_up", "feed_forward.up_proj", r.FFN, r.Dim, false)
		l.Linear("ffn_down", "feed_forward.down_proj", r.Dim, r.FFN, false).Times(float32(m.mlp[1]))
	}
	outputNorm := Tensors{c.Tensor("output_norm.weight", "model.final_layernorm.weight", r.Dim)}
	n := len(c.Tensors)
	c.Output(r, headName)
	if head := Tensors(c.Tensors[n:]); len(head) > 0 {
		head.Times(float32(m.head))
		return
	}
	// The head is token_embd.weight, which has the embeddings' multiplier: the norm before it makes up for that.
	outputNorm.Times(float32(m.head / m.embedding))
}

// inTurn multiplies all values by one constant after the other.
func (ts Tensors) inTurn(a, b float64) Tensors {
	return ts.Each(func(x float32) float32 { return float32(x*float32(a)) * float32(b) })
}

// stateSpaceIn multiplies a row of the state space's input projection by the multiplier of all and that of its part.
func (m *falconMultipliers) stateSpaceIn(s *stateSpace) func(row []float32, r int) {
	return func(row []float32, r int) {
		part := 0
		for _, width := range []int{s.inner, s.inner, s.groups * s.state, s.groups * s.state} {
			if r < width {
				break
			}
			r -= width
			part++
		}
		for i, v := range row {
			row[i] = float32(v*float32(m.ssmIn)) * float32(m.ssm[part])
		}
	}
}

func specFalconH1(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves).dense(k)
	s := readStateSpace(k)
	return h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		b.Parallel(
			model.Residual{Pre: norm, Branch: h.attention(b, model.Optional, model.Absent).Branch()},
			model.Residual{Pre: norm, Branch: h.mamba2(b, s, model.Optional).Branch()})
		norm = &model.Norm{Name: b.Full("ffn_norm"), W: b.Vector("ffn_norm", h.dim, model.Required), Eps: h.eps}
		b.Residual(model.Residual{Pre: norm, Branch: h.mlp(b, model.SiLU, model.Optional).Branch()})
	})
}
