package hf

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/llmq/llmq/formats/gguf"
)

// config is what config.json says, checked.
type config struct {
	arch     *architecture
	class    string
	layers   int
	dim      int // hidden_size
	heads    int
	kvHeads  int
	headDim  int
	ffn      int // intermediate_size
	vocab    int
	context  int
	eps      float64
	tied     bool
	attnBias bool
	mlpBias  bool
	window   int // 0: none
	rope     rope
	object   *object // for the token ids
}

// Bounds beyond which a hyperparameter is taken for a corrupt file; those of package model. Products of three stay
// within an int64.
const (
	maxLayers  = 1 << 14
	maxWidth   = 1 << 20
	maxVocab   = 1 << 24
	maxContext = 1 << 30
)

// mistralWindow is what the transformers library takes for a Mistral model whose config.json does not say; null says
// none.
const mistralWindow = 4096

func parseConfig(file string, data []byte) (*config, error) {
	o, err := parseObject(file, data)
	if err != nil {
		return nil, err
	}
	c := &config{object: o}
	if err := c.readClass(o); err != nil {
		return nil, err
	}
	if q := o.object("quantization_config"); q != nil {
		o.fail("quantization_config", "the checkpoint is quantized already (%s); give the original",
			q.string("quant_method", "?"))
	}
	c.layers = o.int("num_hidden_layers", -1, 1, maxLayers)
	c.dim = o.int("hidden_size", -1, 1, maxWidth)
	c.ffn = o.int("intermediate_size", -1, 1, maxWidth)
	c.heads = o.int("num_attention_heads", -1, 1, maxWidth)
	c.vocab = o.int("vocab_size", -1, 1, maxVocab)
	c.context = o.int("max_position_embeddings", -1, 1, maxContext)
	c.eps = o.float("rms_norm_eps", math.NaN(), 0, 1)
	if *o.err != nil {
		return nil, *o.err
	}
	c.kvHeads = o.int("num_key_value_heads", c.heads, 1, maxWidth)
	if *o.err == nil && c.heads%c.kvHeads != 0 {
		o.fail("num_key_value_heads", "is %d, want a divisor of num_attention_heads, %d", c.kvHeads, c.heads)
	}
	if !o.has("head_dim") && c.dim%c.heads != 0 {
		o.fail("num_attention_heads", "is %d, which does not divide hidden_size, %d", c.heads, c.dim)
	}
	c.headDim = o.int("head_dim", c.dim/c.heads, 1, maxWidth)
	if act := o.string("hidden_act", "silu"); *o.err == nil && act != "silu" {
		o.fail("hidden_act", "is %q; supported: silu", act)
	}
	c.tied = o.bool("tie_word_embeddings", false)
	if c.arch.biasKey != "" {
		c.attnBias = o.bool(c.arch.biasKey, false)
	}
	if c.arch.mlpBiasKey != "" {
		c.mlpBias = o.bool(c.arch.mlpBiasKey, false)
	}
	c.readWindow(o)
	c.readRoPE(o)
	if *o.err != nil {
		return nil, *o.err
	}
	return c, nil
}

func (c *config) readClass(o *object) error {
	v, ok := o.get("architectures")
	var classes []string
	if !ok {
		return fmt.Errorf("%s: architectures: is missing", o.file)
	}
	if json.Unmarshal(v, &classes) != nil || len(classes) == 0 {
		return fmt.Errorf("%s: architectures: is %s, want a list of names", o.file, excerpt(v))
	}
	c.class = classes[0]
	if c.arch = architectures[c.class]; c.arch == nil {
		return fmt.Errorf("%s: architectures: %.64q is not supported; supported: %s",
			o.file, c.class, strings.Join(Architectures(), ", "))
	}
	return nil
}

func (c *config) readWindow(o *object) {
	switch c.arch.window {
	case window:
		c.window = o.int("sliding_window", 0, 1, maxContext)
		if _, there := o.fields["sliding_window"]; !there {
			c.window = mistralWindow
		}
	case windowIfUsed:
		if !o.bool("use_sliding_window", false) {
			return
		}
		c.window = o.int("sliding_window", -1, 1, maxContext)
		switch first := o.int("max_window_layers", c.layers, 0, maxLayers); {
		case first >= c.layers:
			c.window = 0
		case first > 0 && *o.err == nil:
			o.fail("max_window_layers", "is %d: a sliding window in only some of the layers is not supported", first)
		}
	}
}

// metadata appends the hyperparameters under llama.cpp's keys.
func (c *config) metadata(md *gguf.Metadata) {
	set := func(key string, value any) { md.Set(c.arch.name+"."+key, value) }
	set("block_count", uint32(c.layers))
	set("context_length", uint32(c.context))
	set("embedding_length", uint32(c.dim))
	set("feed_forward_length", uint32(c.ffn))
	set("attention.head_count", uint32(c.heads))
	set("attention.head_count_kv", uint32(c.kvHeads))
	set("attention.layer_norm_rms_epsilon", float32(c.eps))
	set("attention.key_length", uint32(c.headDim))
	set("attention.value_length", uint32(c.headDim))
	if c.window > 0 {
		set("attention.sliding_window", uint32(c.window))
	}
	set("vocab_size", uint32(c.vocab))
	c.rope.metadata(set)
}
