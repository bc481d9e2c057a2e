package arch

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// gpt-oss (arXiv:2508.10925): a sink for each head in the softmax, biases in all linears, a window in every other layer,
// and experts with a clamped SwiGLU that are weighted by a softmax over the chosen ones.
func init() {
	register(&Family{Name: "gpt-oss", Classes: []string{"GptOssForCausalLM"}, Convert: convertGPTOSS, Spec: specGPTOSS})
}

// gptossPeriod: of so many layers the last has no window, where the metadata do not say.
const gptossPeriod = 2

func convertGPTOSS(c *Conversion) {
	r := c.Read(Defaults{Context: 131072, Eps: 1e-5, HeadDim: 64, KVHeads: 8, Theta: 150000})
	r.FFN = c.readFFN()
	o := c.Config
	if !o.Has("rope_scaling") && !o.Has("rope_parameters") {
		o.Fail("rope_scaling", "is missing")
	}
	rope := c.readRoPE(r, ropeOptions{LayerType: "full_attention", Untruncated: true})
	experts := o.Int("num_local_experts", 128, 1, maxWidth)
	used := o.Int(c.alias("num_experts_per_tok", "experts_per_token"), 4, 1, maxWidth)
	window := o.Int("sliding_window", 128, 1, maxContext)
	o.Int("experts_per_token", used, used, used)
	if !o.Bool("attention_bias", true) {
		c.Refuse("attention_bias", "GGUF readers want a bias of attn_output")
	}
	if limit := o.Float("swiglu_limit", 7, 0, maxWidth); limit != 7 {
		c.Refuse("swiglu_limit", "GGUF readers clamp at 7")
	}
	if r.Tied {
		c.Refuse("tie_word_embeddings", "GGUF readers want output.weight")
	}
	if o.Err() != nil {
		return
	}
	c.SetBase(r, rope)
	c.setHeadDim(r)
	c.SetExperts(experts, used, r.FFN)
	c.SetInt("attention.sliding_window", window)
	c.setPattern(c.windowedLayers(r.Layers, gptossPeriod), gptossPeriod)
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, true, true)
		l.Tensor("attn_sinks.weight", "self_attn.sinks", r.Heads)
		l.Norm("post_attention_norm", "post_attention_layernorm", r.Dim)
		l.Linear("ffn_gate_inp", "mlp.router", experts, r.Dim, true)
		for half, name := range []string{"ffn_gate_exps", "ffn_up_exps"} {
			l.interleaved(name, half, experts, r.FFN, r.Dim)
		}
		l.FusedExperts("ffn_down_exps", "mlp.experts.down_proj", experts, r.Dim, r.FFN, 0, r.Dim, true)
		l.Tensor("ffn_down_exps.bias", "mlp.experts.down_proj_bias", experts, r.Dim)
	}
	c.Head(r)
}

// interleaved declares the experts' gates (half 0) or ups (half 1), which take turns in the columns of the checkpoint's
// gate_up_proj, experts×in×2·out, and of its bias.
func (l *Layer) interleaved(name string, half, experts, out, in int) {
	w := l.FusedExperts(name, "mlp.experts.gate_up_proj", experts, out, in, 0, 2*out, true)
	w.Parts[0].Row = func(r int) int { return 2*r + half }
	b := l.c.add(l.gguf+name+".bias", []int{experts, out}, l.c.part(l.hf+"mlp.experts.gate_up_proj_bias", experts, 2*out))
	b.Columns = make([]int, out)
	for i := range b.Columns {
		b.Columns[i] = 2*i + half
	}
}

func specGPTOSS(k *model.Keys) *model.Spec {
	h := readHyper(k, elementwise.RoPEHalves)
	k.Int("attention.sliding_window", -1, 1, model.MaxContext)
	h.readPattern(gptossPeriod)
	if k.Float("rope.freq_base_swa", h.rope.Base, 0, math.MaxFloat32) != h.rope.Base {
		k.Fail("rope.freq_base_swa", "is another than rope.freq_base, which no gpt-oss model has")
	}
	return h.spec(func(b *model.Loader, i int) {
		norm := h.norm(b, "attn_norm")
		a := h.attention(b, model.Optional, model.Required)
		a.Sinks = b.Vector("attn_sinks.weight", a.Heads, model.Required)
		b.Residual(model.Residual{Pre: norm, Branch: a.Branch()})
		norm = h.norm(b, "post_attention_norm")
		moe := h.moeOf(b, model.Required)
		moe.Gating, moe.Act = model.GateSelected, model.SwiGLUO
		b.Residual(model.Residual{Pre: norm, Branch: moe.Branch()})
	})
}
