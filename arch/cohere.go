package arch

import (
	"math"
	"strings"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
)

// Command R (Cohere, 2024) and Command R7B and A (arXiv:2504.00698): attention beside the MLP after one LayerNorm without
// bias, RoPE in pairs, output weights that are the embeddings, logits times a constant. Cohere2 has a window in three
// layers of four, and no RoPE in the others.
func init() {
	register(&Family{Name: "command-r", Classes: []string{"CohereForCausalLM"}, Convert: convertCommandR,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs).dense(k)
			return h.cohere(k.Float("logit_scale", 1, 0, model.MaxWidth), false)
		},
	})
	register(&Family{Name: "cohere2", Classes: []string{"Cohere2ForCausalLM"}, Convert: convertCohere2,
		Spec: func(k *model.Keys) *model.Spec {
			h := readHyper(k, elementwise.RoPEPairs).dense(k)
			if h.readPattern(cohere2Period); h.window == 0 {
				k.Fail("attention.sliding_window", "the key is missing")
			}
			return h.cohere(k.Float("logit_scale", math.NaN(), 0, model.MaxWidth), true)
		},
	})
	tokenizes(&Tokenizer{Pre: "command-r"}, "Cohere2ForCausalLM", "CohereForCausalLM")
}

const (
	// cohere2Period: of so many layers the last has no window, where the metadata do not say.
	cohere2Period = 4
	// cohereNormedLayers is the number of layers from which on GGUF readers demand norms of heads in Command R models.
	cohereNormedLayers = 64
)

// cohere describes a model whose logits are multiplied by scale. local: only layers with a window have RoPE.
func (h *hyper) cohere(scale float64, local bool) *model.Spec {
	spec := h.spec(func(b *model.Loader, i int) {
		norm, a := h.norm(b, "attn_norm"), h.jointAttention(b, model.Optional, model.Absent)
		h.headLayerNorms(b, a)
		if local && h.windowOf(i) == 0 {
			a.RoPE = nil
		}
		parallel(b, norm, a, norm, h.mlp(b, model.SiLU, model.Absent))
	})
	spec.Outer = func(b *model.Loader) model.Ends {
		return model.Ends{Norm: h.norm(b, "output_norm"), LogitScale: float32(scale)}
	}
	return spec
}

func convertCommandR(c *Conversion) {
	r, rope := c.readCohere()
	o := c.Config
	// The original context of scaled RoPE, which is read above, is that of max_position_embeddings.
	r.Context = o.Int("model_max_length", r.Context, 1, maxContext)
	norms := o.Bool("use_qk_norm", false)
	if norms != (r.Layers >= cohereNormedLayers) && o.Err() == nil {
		o.Fail("use_qk_norm", "is %t with %d layers: GGUF readers take norms of heads from %d layers on", norms, r.Layers, cohereNormedLayers)
	}
	if o.Err() == nil {
		c.setCohere(r, rope)
		c.cohereTensors(r, norms)
	}
}

func convertCohere2(c *Conversion) {
	r, rope := c.readCohere()
	o := c.Config
	window := o.Int("sliding_window", 4096, 1, maxContext)
	period := o.Int(c.alias("sliding_window_pattern", "_sliding_window_pattern"), cohere2Period, 1, maxLayers)
	if o.Err() != nil {
		return
	}
	windowed := c.windowedLayers(r.Layers, period)
	if o.Err() != nil {
		return
	}
	c.setCohere(r, rope)
	c.SetInt("attention.sliding_window", window)
	c.setPattern(windowed, cohere2Period)
	c.SetInt("vocab_size", r.Vocab)
	c.SetInt("rope.dimension_count", rope.dims)
	c.cohereTensors(r, false)
}

func (c *Conversion) readCohere() (*Config, *rope) {
	r := c.Read(Defaults{Heads: 64, Vocab: 256000, Context: 8192, Eps: 1e-5, Tied: true})
	r.LayerNorm = true
	r.FFN = c.Config.Int("intermediate_size", 22528, 1, maxWidth)
	c.WantAct(r, "silu")
	rope := c.readRoPE(r, ropeOptions{})
	c.wantHeadDim(r)
	c.wantFalse("attention_bias")
	return r, rope
}

// setCohere sets what both have in common.
func (c *Conversion) setCohere(r *Config, rope *rope) {
	c.SetBase(r, rope)
	c.SetFloat("logit_scale", c.Config.Float("logit_scale", 0.0625, 0, maxWidth))
	if rope.kind == "default" {
		c.Set("rope.scaling.type", "none")
	}
}

func (c *Conversion) cohereTensors(r *Config, norms bool) {
	c.Embeddings(r)
	for i := range r.Layers {
		l := c.Layer(i)
		l.Norm("attn_norm", "input_layernorm", r.Dim)
		l.attention(r, false, false)
		if norms {
			l.Tensor("attn_q_norm.weight", "self_attn.q_norm.weight", r.Heads, r.HeadDim)
			l.Tensor("attn_k_norm.weight", "self_attn.k_norm.weight", r.KVHeads, r.HeadDim)
		}
		l.gatedMLP(r, false)
	}
	c.Tensor("output_norm.weight", "model.norm.weight", r.Dim)
	if !r.Tied {
		c.part(headName, r.Vocab, r.Dim)
	}
	c.tiedOutput(r)
	c.skipBiases()
}

// skipBiases leaves out biases that the class does not read: some of Cohere's checkpoints have them, all zero.
func (c *Conversion) skipBiases() {
	n, first := 0, ""
	for _, name := range c.weights.Names() {
		if strings.HasSuffix(name, ".bias") && !c.used[name] && !otherModel.MatchString(name) {
			if n++; n == 1 {
				first = name
			}
			c.used[name] = true
		}
	}
	if n > 0 {
		c.Warn("%d biases that %s does not read are left out: %q and others", n, c.Class, first)
	}
}
