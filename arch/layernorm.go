package arch

import (
	"github.com/llmq/llmq/model"
)

// What families with LayerNorm share: norms and linears with biases, MLPs without a gate, attention beside the MLP.

// BiasedNorm declares a norm's weights and its bias, which the class always has.
func (l *Layer) BiasedNorm(name, from string, n int) {
	l.Tensor(name+".weight", from+".weight", n)
	l.Tensor(name+".bias", from+".bias", n)
}

// finalNorm declares the final norm with its bias.
func (c *Conversion) finalNorm(from string, n int) {
	c.Tensor("output_norm.weight", from+".weight", n)
	c.Tensor("output_norm.bias", from+".bias", n)
}

// ZeroBias declares a linear with a bias, of zeros where the checkpoint has none: GGUF readers demand one.
func (l *Layer) ZeroBias(name, from string, out, in int, bias bool) Tensors {
	ts := l.Linear(name, from, out, in, bias)
	if !bias {
		l.c.Values(l.gguf+name+".bias", make([]float32, out))
	}
	return ts
}

// wantPlainGELU is WantAct for GELU where the class's own form is that with erf.
func (c *Conversion) wantPlainGELU(r *Config) {
	if c.WantAct(r, "gelu"); r.Act == "gelu" {
		c.Warn("%s: the activation is GELU with erf; GGUF readers compute its tanh form, which differs by up to 0.0005", c.Config.File)
	}
}

// setUnusualRoPE sets the base and the scaling where they are not what GGUF readers take for granted: llama.cpp's
// converter sets neither for some architectures.
func (c *Conversion) setUnusualRoPE(e *rope) {
	if e.theta != 10000 || e.kind != "default" {
		c.setScaling(e)
	}
}

// plainMLP is an MLP of GELU without a gate.
func (h *hyper) plainMLP(b *model.Loader, bias model.Presence) *model.MLP {
	return &model.MLP{Act: model.GELU, Up: b.Linear("ffn_up", h.ffn, h.dim, bias), Down: b.Linear("ffn_down", h.dim, h.ffn, bias)}
}

// headLayerNorms gives attention LayerNorms of the heads of q and k, each with weights of its own, if the file has them.
func (h *hyper) headLayerNorms(b *model.Loader, a *model.Attention) {
	if b.Has("attn_q_norm.weight") || b.Has("attn_k_norm.weight") {
		a.QNorm, a.KNorm = b.HeadNorm("attn_q_norm", a.Heads, a.HeadDim, h.eps), b.HeadNorm("attn_k_norm", a.KVHeads, a.HeadDim, h.eps)
	}
}

// sequential adds attention and then an MLP to a layer, each after a norm of its own.
func (h *hyper) sequential(b *model.Loader, a *model.Attention, mlp *model.MLP) {
	b.Residual(model.Residual{Pre: h.norm(b, "attn_norm"), Branch: a.Branch()})
	b.Residual(model.Residual{Pre: h.norm(b, "ffn_norm"), Branch: mlp.Branch()})
}

// parallel adds attention and an MLP beside it to a layer, after norms that may be the same.
func parallel(b *model.Loader, attnNorm *model.Norm, a *model.Attention, mlpNorm *model.Norm, mlp *model.MLP) {
	b.Parallel(model.Residual{Pre: attnNorm, Branch: a.Branch()}, model.Residual{Pre: mlpNorm, Branch: mlp.Branch()})
}
