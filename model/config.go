package model

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
)

// Config holds a model's hyperparameters.
type Config struct {
	Arch    string // general.architecture
	Blocks  int    // block_count: transformer layers
	Dim     int    // embedding_length: the width of the hidden state
	Heads   int    // attention.head_count
	KVHeads int    // attention.head_count_kv; Heads is a multiple of it
	HeadDim int    // attention.key_length
	FFN     int    // feed_forward_length: the MLP's inner width
	Vocab   int    // rows of token_embd.weight
	Context int    // context_length: what the model was trained for
	Eps     float32
	// SlidingWindow: a token attends to itself and the SlidingWindow-1 tokens before it; 0: to all before it.
	// llama.cpp ignores the key for these architectures; the two differ only for sequences longer than the window.
	SlidingWindow int
	Tied          bool // no output.weight: the head is token_embd.weight
	RoPE          RoPE
}

// Bounds beyond which a hyperparameter is taken for a corrupt file. The largest published models stay below a
// sixteenth of each; products of three stay within an int64.
const (
	maxLayers  = 1 << 14
	maxWidth   = 1 << 20
	maxVocab   = 1 << 24
	maxContext = 1 << 30
)

// splitCountKey is in files that llama.cpp's llama-gguf-split wrote.
const splitCountKey = "split.count"

// keys reads metadata below one architecture's prefix. The first failure is kept in err and later reads return zero.
type keys struct {
	src  Source
	arch string
	err  error
}

func (k *keys) fail(key, format string, args ...any) {
	if k.err == nil {
		k.err = fmt.Errorf("model: %s: %s.%s: %s", k.src.Name(), k.arch, key, fmt.Sprintf(format, args...))
	}
}

// int returns a number in [lo,hi], or absent if the key is not there. absent < 0 makes the key required.
func (k *keys) int(key string, absent, lo, hi int) int {
	v, ok := k.src.Meta(k.arch + "." + key)
	if !ok {
		if absent < 0 {
			k.fail(key, "the key is missing")
		}
		return absent
	}
	n, ok := integer(v)
	if !ok {
		k.fail(key, "is %T, want one integer", v)
		return 0
	}
	if n < int64(lo) || n > int64(hi) {
		k.fail(key, "is %d, want %d to %d", n, lo, hi)
		return 0
	}
	return int(n)
}

// float returns a finite number in (lo,hi], or absent if the key is not there. An absent NaN makes the key required.
func (k *keys) float(key string, absent, lo, hi float64) float64 {
	v, ok := k.src.Meta(k.arch + "." + key)
	if !ok {
		if math.IsNaN(absent) {
			k.fail(key, "the key is missing")
		}
		return absent
	}
	var f float64
	switch v := v.(type) {
	case float32:
		f = float64(v)
	case float64:
		f = v
	default:
		n, ok := integer(v)
		if !ok {
			k.fail(key, "is %T, want one number", v)
			return 0
		}
		f = float64(n)
	}
	if !(f > lo && f <= hi) {
		k.fail(key, "is %g, want more than %g, at most %g", f, lo, hi)
		return 0
	}
	return f
}

func (k *keys) string(key, absent string) string {
	v, ok := k.src.Meta(k.arch + "." + key)
	if !ok {
		return absent
	}
	s, ok := v.(string)
	if !ok {
		k.fail(key, "is %T, want a string", v)
	}
	return s
}

func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case uint8:
		return int64(v), true
	case int8:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int32:
		return int64(v), true
	case uint64:
		return int64(min(v, math.MaxInt64)), true
	case int64:
		return v, true
	}
	return 0, false
}

// readConfig parses the hyperparameters and checks them against each other and against the tensors' shapes. It returns
// the tensors by name too.
func readConfig(src Source) (*Config, map[string]*ggml.Info, error) {
	v, ok := src.Meta("general.architecture")
	if !ok {
		return nil, nil, fmt.Errorf("model: %s: general.architecture: the key is missing", src.Name())
	}
	arch, _ := v.(string)
	if architectures[arch] == nil {
		return nil, nil, fmt.Errorf("model: %s: general.architecture is %.64q, supported are %s",
			src.Name(), fmt.Sprint(v), strings.Join(Architectures(), ", "))
	}
	if v, ok := src.Meta(splitCountKey); ok {
		if n, ok := integer(v); !ok || n > 1 {
			return nil, nil, fmt.Errorf("model: %s: is one of %v parts of a model (%s); join them first, as llama-gguf-split --merge does",
				src.Name(), v, splitCountKey)
		}
	}
	tensors := make(map[string]*ggml.Info)
	for _, t := range src.Tensors() {
		if tensors[t.Name] != nil {
			return nil, nil, fmt.Errorf("model: %s: tensor %q appears twice", src.Name(), t.Name)
		}
		tensors[t.Name] = &t
	}

	k := &keys{src: src, arch: arch}
	c := &Config{Arch: arch}
	c.Blocks = k.int("block_count", -1, 1, maxLayers)
	c.Context = k.int("context_length", -1, 1, maxContext)
	c.Dim = k.int("embedding_length", -1, 1, maxWidth)
	c.FFN = k.int("feed_forward_length", -1, 1, maxWidth)
	c.Heads = k.int("attention.head_count", -1, 1, maxWidth)
	c.KVHeads = k.int("attention.head_count_kv", c.Heads, 1, maxWidth)
	if k.err == nil && c.Heads%c.KVHeads != 0 {
		k.fail("attention.head_count_kv", "is %d, want a divisor of attention.head_count, %d", c.KVHeads, c.Heads)
	}
	if _, ok := src.Meta(arch + ".attention.key_length"); !ok && k.err == nil && c.Dim%c.Heads != 0 {
		k.fail("attention.head_count", "is %d, which does not divide embedding_length, %d", c.Heads, c.Dim)
	}
	c.HeadDim = k.int("attention.key_length", c.Dim/max(c.Heads, 1), 1, maxWidth)
	if n := k.int("attention.value_length", c.HeadDim, 1, maxWidth); k.err == nil && n != c.HeadDim {
		k.fail("attention.value_length", "is %d, want attention.key_length, %d", n, c.HeadDim)
	}
	c.Eps = float32(k.float("attention.layer_norm_rms_epsilon", math.NaN(), 0, 1))
	c.SlidingWindow = k.int("attention.sliding_window", 0, 0, maxContext)
	if n := k.int("expert_count", 0, 0, maxWidth); n > 0 {
		k.fail("expert_count", "is %d: mixtures of experts are not supported", n)
	}
	c.RoPE = readRoPE(k, c)
	embed := tensors[embedName]
	if k.err == nil && (embed == nil || len(embed.Shape) != 2) {
		return nil, nil, fmt.Errorf("model: %s: there is no matrix %q", src.Name(), embedName)
	}
	if k.err == nil {
		c.Vocab = k.int("vocab_size", embed.Shape[0], 1, maxVocab)
	}
	if k.err != nil {
		return nil, nil, k.err
	}
	if t, ok := src.Meta("tokenizer.ggml.tokens"); ok {
		if t, ok := t.([]string); ok && len(t) > c.Vocab {
			return nil, nil, fmt.Errorf("model: %s: tokenizer.ggml.tokens has %d tokens, %s only %d rows",
				src.Name(), len(t), embedName, c.Vocab)
		}
	}
	c.Tied = tensors[outputName] == nil
	return c, tensors, checkTensors(src, c, tensors)
}

// checkTensors reports the first tensor that is missing, has another shape than the hyperparameters say, or does not
// belong to the architecture: such a tensor would change the result, were it understood.
func checkTensors(src Source, c *Config, tensors map[string]*ggml.Info) error {
	known := 0
	check := func(prefix string, ws []want) error {
		for _, w := range ws {
			t := tensors[prefix+w.name]
			if t == nil {
				if w.optional {
					continue
				}
				return fmt.Errorf("model: %s: tensor %q is missing", src.Name(), prefix+w.name)
			}
			known++
			if !slices.Equal(t.Shape, w.shape) {
				return fmt.Errorf("model: %s: tensor %q is %v, the metadata say %v", src.Name(), t.Name, t.Shape, w.shape)
			}
			if t.Type == nil || t.Type.Unpack == nil {
				return fmt.Errorf("model: %s: tensor %q: its type cannot be decoded", src.Name(), t.Name)
			}
			if t.Cols()%t.Type.BlockLen != 0 {
				return fmt.Errorf("model: %s: tensor %q: %d columns are not a multiple of %s's block of %d",
					src.Name(), t.Name, t.Cols(), t.Type.Name, t.Type.BlockLen)
			}
		}
		return nil
	}
	if err := check("", c.outerTensors()); err != nil {
		return err
	}
	for i := range c.Blocks {
		if err := check(layerPrefix(i), c.layerTensors()); err != nil {
			return err
		}
	}
	if known == len(tensors) {
		return nil
	}
	wanted := make(map[string]bool, known)
	for _, w := range c.outerTensors() {
		wanted[w.name] = true
	}
	for i := range c.Blocks {
		for _, w := range c.layerTensors() {
			wanted[layerPrefix(i)+w.name] = true
		}
	}
	for _, t := range src.Tensors() {
		if !wanted[t.Name] {
			return fmt.Errorf("model: %s: tensor %q does not belong to a %s model of %d layers",
				src.Name(), t.Name, c.Arch, c.Blocks)
		}
	}
	return nil
}

func layerPrefix(i int) string { return fmt.Sprintf("blk.%d.", i) }
