package arch

import (
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// hyper are the hyperparameters that nearly all architectures have, as GGUF metadata give them.
type hyper struct {
	arch                            string
	layers, dim, vocab, context     int
	heads, kvHeads, headDim, ffn    int
	eps                             float32
	rope                            *model.RoPE
	window                          int    // 0: none
	windowed                        []bool // by layer; nil: all of them, where window is set
	experts, expertsUsed, expertFFN int
	layerNorm                       bool
	unused                          []string // tensors that nothing is computed with: see dropNextn
}

// Keys that may list a number for each layer.
const (
	ffnKey     = "feed_forward_length"
	headsKey   = "attention.head_count"
	kvHeadsKey = "attention.head_count_kv"
)

// readHyper reads what an architecture with RoPE of some style has. Numbers that differ from layer to layer are refused, but
// for the keys byLayer, of which the family reads the lists.
func readHyper(k *model.Keys, style elementwise.RoPEStyle, byLayer ...string) *hyper {
	h := readUnturned(k, byLayer...)
	h.rope = k.RoPE(style, h.headDim, h.context)
	return h
}

// readUnturned is readHyper for an architecture without RoPE, whatever the metadata say of one.
func readUnturned(k *model.Keys, byLayer ...string) *hyper {
	h := &hyper{arch: k.Arch}
	h.layers = k.Int("block_count", -1, 1, model.MaxLayers)
	h.context = k.Int("context_length", -1, 1, model.MaxContext)
	h.dim = k.Int("embedding_length", -1, 1, model.MaxWidth)
	number := func(key string, absent int) int {
		list := k.Ints(key, max(h.layers, 1), absent, 0, model.MaxWidth)
		for i, n := range list {
			if n != list[0] && !slices.Contains(byLayer, key) {
				k.Fail(key, "is %d for layer 0 and %d for layer %d: in %s models llmq takes one number for all layers", list[0], n, i, h.arch)
			}
		}
		return list[0]
	}
	h.ffn, h.heads = number(ffnKey, 0), number(headsKey, -1)
	h.kvHeads = number(kvHeadsKey, h.heads)
	if k.Err() == nil && h.kvHeads > 0 && h.heads%h.kvHeads != 0 {
		k.Fail("attention.head_count_kv", "is %d, want a divisor of attention.head_count, %d", h.kvHeads, h.heads)
	}
	if !k.Has("attention.key_length") && k.Err() == nil && h.heads > 0 && h.dim%h.heads != 0 {
		k.Fail("attention.head_count", "is %d, which does not divide embedding_length, %d", h.heads, h.dim)
	}
	h.headDim = k.Int("attention.key_length", h.dim/max(h.heads, 1), 1, model.MaxWidth)
	if k.Err() == nil && h.heads*h.headDim > model.MaxWidth {
		k.Fail("attention.key_length", "is %d for %d heads, %d features in all", h.headDim, h.heads, h.heads*h.headDim)
	}
	h.window = k.Int("attention.sliding_window", 0, 0, model.MaxContext)
	h.windowed = readWindowed(k, h.layers)
	if h.layerNorm = k.Has("attention.layer_norm_epsilon"); h.layerNorm {
		h.eps = float32(k.Float("attention.layer_norm_epsilon", math.NaN(), 0, 1))
	} else {
		h.eps = float32(k.Float("attention.layer_norm_rms_epsilon", math.NaN(), 0, 1))
	}
	h.experts = k.Int("expert_count", 0, 0, model.MaxExperts)
	if h.expertsUsed = k.Int("expert_used_count", 0, 0, model.MaxWidth); h.experts == 0 {
		h.expertsUsed = 0 // some writers leave it there
	} else if h.expertsUsed > h.experts {
		k.Fail("expert_used_count", "is %d, want 0 to %d", h.expertsUsed, h.experts)
	}
	h.expertFFN = k.Int("expert_feed_forward_length", h.ffn, 0, model.MaxWidth)
	embed := k.Shape(model.EmbedName)
	if k.Err() == nil && len(embed) != 2 {
		k.Fail("embedding_length", "is %d, but there is no matrix %q", h.dim, model.EmbedName)
		return h
	}
	if k.Err() == nil && embed[0] > model.MaxVocab {
		k.Fail("vocab_size", "is taken from %q, which has %d rows: more than %d", model.EmbedName, embed[0], model.MaxVocab)
	}
	if k.Err() == nil {
		h.vocab = k.Int("vocab_size", embed[0], 1, model.MaxVocab)
	}
	return h
}

// dense refuses experts in an architecture that has none.
func (h *hyper) dense(k *model.Keys) *hyper {
	if h.experts > 0 {
		k.Fail("expert_count", "is %d: mixtures of experts are not supported in %s models", h.experts, h.arch)
	}
	return h
}

// dropNextn takes the layers that predict further tokens from the model's. GGUF counts them among the layers, as the last,
// and readers do not run them; their tensors are carried over.
func (h *hyper) dropNextn(k *model.Keys) {
	n := k.Int("nextn_predict_layers", 0, 0, max(h.layers-1, 0))
	for i := h.layers - n; i < h.layers; i++ {
		h.unused = append(h.unused, k.Under(ggml.LayerName(i)+".")...)
	}
	h.layers -= n
}

// spec describes a model whose layers are made by layer, with a final norm and a head.
func (h *hyper) spec(layer func(b *model.Loader, i int)) *model.Spec {
	return &model.Spec{Arch: h.arch, Layers: h.layers, Dim: h.dim, Vocab: h.vocab, Context: h.context, ExpertsUsed: h.expertsUsed,
		Layer: layer,
		Outer: func(b *model.Loader) model.Ends {
			for _, name := range h.unused {
				b.Unused(name, strings.Contains(name, ".ffn_gate_inp"))
			}
			return model.Ends{Norm: h.norm(b, "output_norm")}
		},
	}
}

// norm is the norm that the architecture has over the residual stream.
func (h *hyper) norm(b *model.Loader, name string) *model.Norm {
	if h.layerNorm {
		return b.LayerNorm(name, h.dim, h.eps)
	}
	return b.Norm(name, h.dim, h.eps)
}

// attention is grouped-query attention, with q, k and v split or, as converters make them where they are asked to, in one.
// qkv and out say whether they have biases.
func (h *hyper) attention(b *model.Loader, qkv, out model.Presence) *model.Attention {
	return h.attentionOf(b, h.heads, qkv, out)
}

// attentionOf is attention with more rows in q than for its heads alone: those of rowHeads.
func (h *hyper) attentionOf(b *model.Loader, rowHeads int, qkv, out model.Presence) *model.Attention {
	heads, kvHeads := h.someHeads(b)
	q, kv := rowHeads*h.headDim, kvHeads*h.headDim
	a := &model.Attention{
		Heads: heads, KVHeads: kvHeads, HeadDim: h.headDim, RoPE: h.rope,
		Scale: attention.Scale(h.headDim), Window: h.windowOf(b.Layer()),
	}
	if b.Has("attn_qkv.weight") {
		a.QKV = b.Linear("attn_qkv", q+2*kv, h.dim, qkv)
	} else {
		a.Q, a.K, a.V = b.Linear("attn_q", q, h.dim, qkv), b.Linear("attn_k", kv, h.dim, qkv), b.Linear("attn_v", kv, h.dim, qkv)
	}
	a.O = b.Linear("attn_output", h.dim, heads*h.headDim, out)
	return a
}

// someHeads are the heads of queries and of keys; a layer cannot be without.
func (h *hyper) someHeads(b *model.Loader) (heads, kvHeads int) {
	if h.heads < 1 || h.kvHeads < 1 {
		b.Fail("attention has %d heads, %d of them of keys", h.heads, h.kvHeads)
		return 1, 1
	}
	return h.heads, h.kvHeads
}

// normedAttention is attention with norms of heads, before a residual connection.
func (h *hyper) normedAttention(b *model.Loader) model.Residual {
	norm := h.norm(b, "attn_norm")
	a := h.attention(b, model.Optional, model.Optional)
	h.headNorms(b, a)
	return model.Residual{Pre: norm, Branch: a.Branch()}
}

// jointAttention is attention with q, k and v in one linear if the file has them so, or split.
func (h *hyper) jointAttention(b *model.Loader, qkv, out model.Presence) *model.Attention {
	if !b.Has("attn_qkv.weight") {
		return h.attention(b, qkv, out)
	}
	heads, kvHeads := h.someHeads(b)
	return &model.Attention{
		Heads: heads, KVHeads: kvHeads, HeadDim: h.headDim,
		QKV:  b.Linear("attn_qkv", (heads+2*kvHeads)*h.headDim, h.dim, qkv),
		O:    b.Linear("attn_output", h.dim, heads*h.headDim, out),
		RoPE: h.rope, Scale: attention.Scale(h.headDim), Window: h.windowOf(b.Layer()),
	}
}

// headNorms gives attention norms of each head of q and k.
func (h *hyper) headNorms(b *model.Loader, a *model.Attention) {
	a.QNorm, a.KNorm = b.Norm("attn_q_norm", h.headDim, h.eps), b.Norm("attn_k_norm", h.headDim, h.eps)
}

// mlp is a gated MLP.
func (h *hyper) mlp(b *model.Loader, act model.Activation, bias model.Presence) *model.MLP {
	return h.mlpOf(b, "", h.ffn, act, bias)
}

// mlpOf is mlp with another width, whose tensors end in suffix ("_shexp").
func (h *hyper) mlpOf(b *model.Loader, suffix string, ffn int, act model.Activation, bias model.Presence) *model.MLP {
	return &model.MLP{Act: act,
		Gate: b.Linear("ffn_gate"+suffix, ffn, h.dim, bias),
		Up:   b.Linear("ffn_up"+suffix, ffn, h.dim, bias),
		Down: b.Linear("ffn_down"+suffix, h.dim, ffn, bias),
	}
}

// fusedMLP is an MLP whose gate and up are one linear, gate's rows first.
func (h *hyper) fusedMLP(b *model.Loader, act model.Activation) *model.MLP {
	return &model.MLP{Act: act, Up: b.Linear("ffn_up", 2*h.ffn, h.dim, model.Absent), Down: b.Linear("ffn_down", h.dim, h.ffn, model.Absent)}
}

// moe is a mixture of gated experts under the common names, the router's gating aside.
func (h *hyper) moe(b *model.Loader) *model.MoE { return h.moeOf(b, model.Absent) }

// moeOf is moe where the router and the experts may have biases.
func (h *hyper) moeOf(b *model.Loader, bias model.Presence) *model.MoE {
	n := h.experts
	if n < 1 || h.expertsUsed < 1 {
		b.Fail("%d of %d experts are used", h.expertsUsed, n)
		n = 1
	}
	m := &model.MoE{Router: b.Kept("ffn_gate_inp", n, h.dim, bias), Top: h.expertsUsed}
	if b.Has("ffn_gate_up_exps.weight") {
		m.GateUp = b.Experts("ffn_gate_up_exps", n, 2*h.expertFFN, h.dim, bias)
	} else {
		m.Gate = b.Experts("ffn_gate_exps", n, h.expertFFN, h.dim, bias)
		m.Up = b.Experts("ffn_up_exps", n, h.expertFFN, h.dim, bias)
	}
	m.Down = b.Experts("ffn_down_exps", n, h.dim, h.expertFFN, bias)
	return m
}

// readKVHeads reads how many heads of keys each layer has; 0: it has no attention.
func (h *hyper) readKVHeads(k *model.Keys) []int {
	kv := k.Ints("attention.head_count_kv", h.layers, -1, 0, model.MaxWidth)
	for _, n := range kv {
		if n > 0 && h.heads%n != 0 {
			k.Fail("attention.head_count_kv", "has %d, want divisors of attention.head_count, %d", n, h.heads)
		}
	}
	return kv
}

// withKVHeads are the hyperparameters of a layer with so many heads of keys.
func (h *hyper) withKVHeads(n int) *hyper {
	at := *h
	at.kvHeads = n
	return &at
}

// withFactors reads the factors of RoPE's frequencies, if there are any.
func (h *hyper) withFactors(spec *model.Spec) *model.Spec {
	outer := spec.Outer
	spec.Outer = func(b *model.Loader) model.Ends {
		b.SetFactors(h.rope, "rope_freqs.weight", model.Optional)
		return outer(b)
	}
	return spec
}

// wideNorms gives attention norms over all heads of q, and all of k, at once.
func (h *hyper) wideNorms(b *model.Loader, a *model.Attention) {
	a.QNorm = b.Norm("attn_q_norm", a.Heads*a.HeadDim, h.eps)
	a.KNorm = b.Norm("attn_k_norm", a.KVHeads*a.HeadDim, h.eps)
}
