package arch

import (
	"fmt"

	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/deltanet"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Qwen3-Next and Qwen3.5 (Qwen team, github.com/QwenLM): gated DeltaNet in most layers, attention with an output gate in the
// others, norms that are stored without their 1, and an MLP or Qwen2-MoE's experts with normalised weights. Layers
// for multi-token prediction are like those of attention.
func init() {
	register(&Family{Name: "qwen35", Classes: []string{"Qwen3_5ForConditionalGeneration", "Qwen3_5ForCausalLM"},
		Convert: convertQwen35, Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves).dense(k)
			h.readSections(k)
			return h.qwen35(k)
		}})
	register(&Family{Name: "qwen35moe", Classes: []string{"Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"},
		Convert: convertQwen35, Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEHalves)
			h.readSections(k)
			return h.qwen35(k)
		}})
	register(&Family{Name: "qwen3next", Classes: []string{"Qwen3NextForCausalLM"},
		Convert: convertQwen35, Spec: func(k *model.Keys) *model.Spec {
			return readHyper(k, elementwise.RoPEHalves).qwen35(k)
		}})
}

// qwen35 describes the three. Qwen3-Next has experts, one linear for both gates of its DeltaNet, and heads of values in the
// checkpoint's order; converters of Qwen3.5 put them so that head h has the key of h mod KeyHeads.
func (h *hyper) qwen35(k *model.Keys) *model.Spec {
	next, moe := h.arch == "qwen3next", h.arch != "qwen35"
	h.dropNextn(k)
	d := model.DeltaNet{Eps: h.eps, Taps: k.Int("ssm.conv_kernel", -1, 1, 64)}
	d.Heads = k.Int("ssm.time_step_rank", -1, 1, model.MaxWidth)
	d.KeyHeads = k.Int("ssm.group_count", -1, 1, model.MaxWidth)
	d.KeyDim = k.Int("ssm.state_size", -1, 1, model.MaxWidth)
	inner := k.Int("ssm.inner_size", -1, 1, model.MaxWidth)
	if k.Err() == nil && (d.Heads%d.KeyHeads != 0 || inner != d.Heads*d.KeyDim) {
		k.Fail("ssm.inner_size", "is %d, with %d heads of values, %d heads of keys and %d features", inner, d.Heads, d.KeyHeads, d.KeyDim)
	}
	d.ValueDim, d.Grouped, d.Scale = d.KeyDim, next, attention.Scale(max(d.KeyDim, 1))
	recurrent := k.Bools("attention.recurrent_layers", h.layers)
	if recurrent == nil {
		recurrent = periodic(h.layers, k.Int("full_attention_interval", 4, 1, model.MaxLayers))
	}
	shared := k.Int("expert_shared_feed_forward_length", h.ffn, 0, model.MaxWidth)
	if moe {
		h.dividedFFN(k)
	}
	return h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		if recurrent[i] {
			b.Residual(model.Residual{Pre: norm, Branch: h.deltaNet(b, d, next)})
		} else {
			b.Residual(model.Residual{Pre: norm, Branch: h.gatedAttention(b)})
		}
		norm = h.norm(b, "post_attention_norm")
		if !moe {
			b.Residual(model.Residual{Pre: norm, Branch: h.mlp(b, model.SiLU, model.Absent).Branch()})
			return
		}
		experts := h.gatedShared(b, h.moe(b), shared)
		experts.Normalize = true
		b.Residual(model.Residual{Pre: norm, Branch: experts.Branch()})
	})
}

// deltaNet is the DeltaNet mixer of d's shape.
func (h *hyper) deltaNet(b *model.Loader, d model.DeltaNet, next bool) model.Branch {
	inner := d.Heads * d.ValueDim
	channels := 2*d.KeyHeads*d.KeyDim + inner
	d.QKV = b.Linear("attn_qkv", channels, h.dim, model.Absent)
	d.Gate = b.Linear("attn_gate", inner, h.dim, model.Absent)
	if next {
		d.BetaAlpha = b.Linear("ssm_ba", 2*d.Heads, h.dim, model.Absent)
	} else {
		d.Alpha = b.Linear("ssm_alpha", d.Heads, h.dim, model.Absent)
		d.Beta = b.Linear("ssm_beta", d.Heads, h.dim, model.Absent)
	}
	d.Conv = b.Values("ssm_conv1d.weight", model.RoleKept, model.Required, channels, d.Taps)
	d.DT = b.Vector("ssm_dt.bias", d.Heads, model.Required)
	d.A = b.Vector("ssm_a", d.Heads, model.Required)
	d.Norm = b.Norm("ssm_norm", d.ValueDim, h.eps)
	d.O = b.Linear("ssm_out", h.dim, inner, model.Absent)
	return d.Branch()
}

// gatedAttention is attention with norms of heads, where attn_q has a gate for each head after its queries.
func (h *hyper) gatedAttention(b *model.Loader) model.Branch {
	a := h.attentionOf(b, 2*h.heads, model.Absent, model.Absent)
	a.Gated = true
	h.headNorms(b, a)
	return a.Branch()
}

// linearHeads are the sizes of a DeltaNet in config.json.
type linearHeads struct {
	deltanet.Shape
	taps int
}

// tiled is the head of values of the checkpoint, where those of a key head follow each other, that GGUF has at h, where
// those of a key head are KeyHeads apart.
func (d *linearHeads) tiled(h int) int { return h%d.KeyHeads*(d.Heads/d.KeyHeads) + h/d.KeyHeads }

// tiledRow is tiled for rows, ValueDim of them a head, from row first on.
func (d *linearHeads) tiledRow(first int) func(r int) int {
	return func(r int) int {
		if r < first {
			return r
		}
		r -= first
		return first + d.tiled(r/d.ValueDim)*d.ValueDim + r%d.ValueDim
	}
}

func (c *Conversion) readLinearHeads() *linearHeads {
	o := c.Config
	d := &linearHeads{taps: o.Int("linear_conv_kernel_dim", 4, 1, 64)}
	d.Heads = o.Int("linear_num_value_heads", 32, 1, maxWidth)
	d.KeyHeads = o.Int("linear_num_key_heads", 16, 1, maxWidth)
	d.KeyDim = o.Int("linear_key_head_dim", 128, 1, maxWidth)
	d.ValueDim = o.Int("linear_value_head_dim", 128, 1, maxWidth)
	if o.Err() == nil && d.Heads%d.KeyHeads != 0 {
		o.Fail("linear_num_key_heads", "is %d, want a divisor of linear_num_value_heads, %d", d.KeyHeads, d.Heads)
	}
	if o.Err() == nil && d.KeyDim != d.ValueDim {
		o.Fail("linear_value_head_dim", "is %d: GGUF readers take linear_key_head_dim, %d, for both", d.ValueDim, d.KeyDim)
	}
	return d
}

// readRecurrent reads which layers are DeltaNet's.
func (c *Conversion) readRecurrent(n int) (recurrent []bool, interval int) {
	o := c.Config
	interval = o.Int("full_attention_interval", 4, 1, maxLayers)
	types := o.Strings("layer_types")
	if types == nil {
		return periodic(n, interval), interval
	}
	if len(types) != n {
		o.Fail("layer_types", "has %d elements, want %d, one for each layer", len(types), n)
	}
	for _, t := range types {
		if t != "linear_attention" && t != "full_attention" {
			o.Fail("layer_types", "has %.64q; supported for %s: linear_attention, full_attention", t, c.Class)
		}
		recurrent = append(recurrent, t == "linear_attention")
	}
	return recurrent, interval
}

func convertQwen35(c *Conversion) {
	next, moe := c.Family.Name == "qwen3next", c.Family.Name != "qwen35"
	kv := 4
	if moe {
		kv = 2
	}
	r := c.Read(Defaults{Context: 32768, KVHeads: kv, HeadDim: 256})
	o := c.Config
	if moe {
		r.FFN = o.Int("intermediate_size", 0, 0, maxWidth)
	} else {
		r.FFN = o.Int("intermediate_size", 12288, 1, maxWidth)
	}
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{Partial: true, PartialDefault: 0.25})
	if o.Bool("attention_bias", false) {
		c.Refuse("attention_bias", "GGUF readers know no biases of this attention")
	}
	if !o.Bool("attn_output_gate", true) {
		c.Refuse("attn_output_gate", "the class has a gate in every attention")
	}
	experts, used, ffn, shared := 0, 0, 0, 0
	if moe {
		experts = o.Int("num_experts", map[bool]int{true: 512, false: 256}[next], 1, maxWidth)
		used = o.Int("num_experts_per_tok", map[bool]int{true: 10, false: 8}[next], 1, max(experts, 1))
		ffn = o.Int("moe_intermediate_size", 512, 1, maxWidth)
		shared = o.Int("shared_expert_intermediate_size", 512, 1, maxWidth)
	}
	if next {
		c.sparseEverywhere()
		if !o.Bool("norm_topk_prob", true) {
			c.Refuse("norm_topk_prob", "GGUF readers divide the weights of a token's experts by their sum")
		}
	}
	d := c.readLinearHeads()
	recurrent, interval := c.readRecurrent(r.Layers)
	further := c.mtpLayers()
	o.Int("mtp_num_hidden_layers", 0, 0, maxLayers) // the tensors say
	if o.Err() != nil {
		return
	}
	if r.Eps != 1e-6 {
		c.Warn("%s: rms_norm_eps is %g: GGUF readers take it for the norm of DeltaNet's queries and keys too, the class 1e-06", o.File, r.Eps)
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	if !next {
		c.setSections(rope, []int32{11, 11, 10, 0})
	}
	if moe {
		c.SetExperts(experts, used, ffn)
		c.SetInt("expert_shared_feed_forward_length", shared)
	}
	c.SetInt("ssm.conv_kernel", d.taps)
	c.SetInt("ssm.state_size", d.KeyDim)
	c.SetInt("ssm.group_count", d.KeyHeads)
	c.SetInt("ssm.time_step_rank", d.Heads)
	c.SetInt("ssm.inner_size", d.Heads*d.ValueDim)
	recurrent = append(recurrent, make([]bool, further)...)
	c.Set("attention.recurrent_layers", recurrent)
	if further > 0 {
		c.setNextn(r, further)
	}
	c.SetInt("full_attention_interval", interval)
	c.SetInt("rope.dimension_count", rope.dims)
	c.Embeddings(r)
	for i := range r.Layers + further {
		l := c.Layer(i)
		if i >= r.Layers {
			l = c.LayerAt(i, fmt.Sprintf("mtp.layers.%d.", i-r.Layers))
		}
		l.Norm("attn_norm", "input_layernorm", r.Dim).Plus(1)
		switch {
		case !recurrent[i]:
			l.gatedAttention(r)
		case next:
			l.nextDeltaNet(r, d)
		default:
			l.deltaNet(r, d)
		}
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim).Plus(1)
		if moe {
			l.experts(r, experts, ffn)
			l.gatedShared(r, shared)
		} else {
			l.gatedMLP(r, false)
		}
	}
	if further > 0 {
		l := c.LayerAt(r.Layers, "mtp.")
		l.Linear("nextn.eh_proj", "fc", r.Dim, 2*r.Dim, false)
		l.Norm("nextn.enorm", "pre_fc_norm_embedding", r.Dim).Plus(1)
		l.Norm("nextn.hnorm", "pre_fc_norm_hidden", r.Dim).Plus(1)
		l.Norm("nextn.shared_head_norm", "norm", r.Dim).Plus(1)
	}
	Tensors{c.Tensor("output_norm.weight", "model.norm.weight", r.Dim)}.Plus(1)
	c.Output(r, headName)
}

// gatedAttention declares attention whose q has a gate for each head after its queries.
func (l *Layer) gatedAttention(r *Config) {
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	l.Linear("attn_q", "self_attn.q_proj", 2*q, r.Dim, false)
	l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, false)
	l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, false)
	l.headNorms(r).Plus(1)
	l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, false)
}

// deltaNet declares Qwen3.5's DeltaNet, whose heads of values GGUF has in another order.
func (l *Layer) deltaNet(r *Config, d *linearHeads) {
	keys, values := 2*d.KeyHeads*d.KeyDim, d.Heads*d.ValueDim
	l.Linear("attn_qkv", "linear_attn.in_proj_qkv", keys+values, r.Dim, false).Rows(d.tiledRow(keys))
	l.Linear("attn_gate", "linear_attn.in_proj_z", values, r.Dim, false).Rows(d.tiledRow(0))
	l.Linear("ssm_alpha", "linear_attn.in_proj_a", d.Heads, r.Dim, false).Rows(d.tiled)
	l.Linear("ssm_beta", "linear_attn.in_proj_b", d.Heads, r.Dim, false).Rows(d.tiled)
	l.conv(d).Rows(d.tiledRow(keys))
	l.decay(d).Columns(d.tiled)
	l.Norm("ssm_norm", "linear_attn.norm", d.ValueDim)
	l.Linear("ssm_out", "linear_attn.out_proj", r.Dim, values, false).Columns(d.tiledRow(0))
}

// nextDeltaNet declares Qwen3-Next's DeltaNet, where for each key head rows of q, k, v and of the gate follow each other.
func (l *Layer) nextDeltaNet(r *Config, d *linearHeads) {
	keys, values := d.KeyHeads*d.KeyDim, d.Heads*d.ValueDim
	all, own := 2*keys+2*values, values/d.KeyHeads // own: rows of v for a key head
	group := 2*d.KeyDim + 2*own
	rows := func(name string, n int, row func(r int) int) {
		p := l.c.part(l.hf+"linear_attn.in_proj_qkvz.weight", all, r.Dim)
		p.Count, p.Row = n, row
		l.c.add(l.gguf+name+".weight", []int{n, r.Dim}, p)
	}
	of := func(r, size, first int) int { return r/size*group + first + r%size }
	rows("attn_qkv", 2*keys+values, func(r int) int {
		switch {
		case r < keys:
			return of(r, d.KeyDim, 0)
		case r < 2*keys:
			return of(r-keys, d.KeyDim, d.KeyDim)
		}
		return of(r-2*keys, own, 2*d.KeyDim)
	})
	rows("attn_gate", values, func(r int) int { return of(r, own, 2*d.KeyDim+own) })
	l.Linear("ssm_ba", "linear_attn.in_proj_ba", 2*d.Heads, r.Dim, false)
	l.conv(d)
	l.decay(d)
	l.Norm("ssm_norm", "linear_attn.norm", d.ValueDim)
	l.Linear("ssm_out", "linear_attn.out_proj", r.Dim, values, false)
}

// conv declares the convolution's factors, which the checkpoint has as channels×1×taps.
func (l *Layer) conv(d *linearHeads) Tensors {
	channels := 2*d.KeyHeads*d.KeyDim + d.Heads*d.ValueDim
	p := l.c.part(l.hf+"linear_attn.conv1d.weight", channels, 1, d.taps)
	return Tensors{l.c.add(l.gguf+"ssm_conv1d.weight", []int{channels, d.taps}, p)}
}

// decay declares what is for each head of how its memory fades.
func (l *Layer) decay(d *linearHeads) Tensors {
	dt := l.Tensor("ssm_dt.bias", "linear_attn.dt_bias", d.Heads)
	a := Tensors{l.Tensor("ssm_a", "linear_attn.A_log", d.Heads)}
	a.Each(func(x float32) float32 { return -exp32(x) })
	return append(a, dt)
}
