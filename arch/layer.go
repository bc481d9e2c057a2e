package arch

// attention declares split q, k, v and o under the usual names, in the checkpoint's order of rows. It returns q and k, with their biases.
func (l *Layer) attention(r *Config, qkvBias, outBias bool) Tensors {
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	turned := l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, qkvBias)
	turned = append(turned, l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, qkvBias)...)
	l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, qkvBias)
	l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, outBias)
	return turned
}

// headNorms declares norms of the heads of q and k.
func (l *Layer) headNorms(r *Config) Tensors {
	return append(l.Norm("attn_q_norm", "self_attn.q_norm", r.HeadDim), l.Norm("attn_k_norm", "self_attn.k_norm", r.HeadDim)...)
}

// normedAttention declares a norm and attention, where q, k and v have biases, or heads have norms.
func (l *Layer) normedAttention(r *Config, headNorms bool) {
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	l.Norm("attn_norm", "input_layernorm", r.Dim)
	l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, !headNorms)
	l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, !headNorms)
	l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, !headNorms)
	if headNorms {
		l.headNorms(r)
	}
	l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, false)
}

// gatedMLP declares an MLP under the usual names.
func (l *Layer) gatedMLP(r *Config, bias bool) {
	l.Linear("ffn_gate", "mlp.gate_proj", r.FFN, r.Dim, bias)
	l.Linear("ffn_up", "mlp.up_proj", r.FFN, r.Dim, bias)
	l.Linear("ffn_down", "mlp.down_proj", r.Dim, r.FFN, bias)
}

// experts declares a router and n gated experts, ffn wide, under the usual names: one by one, or as newer checkpoints have
// them, all in one tensor with gate and up one after the other.
func (l *Layer) experts(r *Config, n, ffn int) {
	l.Linear("ffn_gate_inp", "mlp.gate", n, r.Dim, false)
	const fused, down = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
	for _, suffix := range []string{"", ".weight"} {
		if l.Has(fused + suffix) {
			l.FusedExperts("ffn_gate_exps", fused+suffix, n, ffn, r.Dim, 0, 2*ffn, false)
			l.FusedExperts("ffn_up_exps", fused+suffix, n, ffn, r.Dim, ffn, 2*ffn, false)
			l.FusedExperts("ffn_down_exps", down+suffix, n, r.Dim, ffn, 0, r.Dim, false)
			return
		}
	}
	l.Experts("ffn_gate_exps", "mlp.experts.%d.gate_proj", n, ffn, r.Dim)
	l.Experts("ffn_up_exps", "mlp.experts.%d.up_proj", n, ffn, r.Dim)
	l.Experts("ffn_down_exps", "mlp.experts.%d.down_proj", n, r.Dim, ffn)
}

// sharedExpert declares the expert of all tokens under its usual names; from is where the checkpoint has it.
func (l *Layer) sharedExpert(r *Config, from string, ffn int) {
	l.Linear("ffn_gate_shexp", from+".gate_proj", ffn, r.Dim, false)
	l.Linear("ffn_up_shexp", from+".up_proj", ffn, r.Dim, false)
	l.Linear("ffn_down_shexp", from+".down_proj", r.Dim, ffn, false)
}

// mixtralExperts declares a router and experts under Mixtral's names.
func (l *Layer) mixtralExperts(r *Config, n int) {
	l.Linear("ffn_gate_inp", "block_sparse_moe.gate", n, r.Dim, false)
	l.Experts("ffn_gate_exps", "block_sparse_moe.experts.%d.w1", n, r.FFN, r.Dim)
	l.Experts("ffn_up_exps", "block_sparse_moe.experts.%d.w3", n, r.FFN, r.Dim)
	l.Experts("ffn_down_exps", "block_sparse_moe.experts.%d.w2", n, r.Dim, r.FFN)
}

// Taps declares the taps of a convolution by channel, which the checkpoint has as channels×1×width.
func (l *Layer) Taps(name, from string, channels, width int) *Tensor {
	return l.c.add(l.gguf+name, []int{channels, width}, l.c.part(l.hf+from, channels, 1, width))
}

// wideNorms declares them.
func (l *Layer) wideNorms(r *Config) {
	l.Norm("attn_q_norm", "self_attn.q_norm", r.Heads*r.HeadDim)
	l.Norm("attn_k_norm", "self_attn.k_norm", r.KVHeads*r.HeadDim)
}

// plainLayers declares layers as Llama has them, or Mixtral with so many experts: the rows of q and k in the order of
// GGUF's pairs.
func (c *Conversion) plainLayers(r *Config, rope *rope, attnBias, mlpBias bool, experts int) {
	q, kv := r.Heads*r.HeadDim, r.KVHeads*r.HeadDim
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.Linear("attn_q", "self_attn.q_proj", q, r.Dim, attnBias).Permute(r.HeadDim, rope.dims)
		l.Linear("attn_k", "self_attn.k_proj", kv, r.Dim, attnBias).Permute(r.HeadDim, rope.dims)
		l.Linear("attn_v", "self_attn.v_proj", kv, r.Dim, attnBias)
		l.Linear("attn_output", "self_attn.o_proj", r.Dim, q, attnBias)
		l.Norm("ffn_norm", "post_attention_layernorm", r.Dim)
		if experts > 0 {
			l.mixtralExperts(r, experts)
			continue
		}
		l.gatedMLP(r, mlpBias)
	}
}
