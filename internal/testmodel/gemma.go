package testmodel

import (
	"math/rand/v2"
	"strings"

	"github.com/llmq/llmq/formats/gguf"
)

// GemmaWindow is the window of Gemma's first layer.
const GemmaWindow = 16

// Gemma returns the model "qwen3" as a gemma3 model: norms after attention and MLP too, GELU, scaled embeddings, and a
// window, with a RoPE base of its own, in the first of the two layers.
func Gemma() *Source {
	src := New("qwen3").Source()
	s := &Source{Path: "testmodel/gemma"}
	for _, kv := range src.KV {
		if key, ok := strings.CutPrefix(kv.Key, "qwen3."); ok {
			kv.Key = "gemma3." + key
		}
		s.KV = append(s.KV, gguf.KV{Key: kv.Key, Value: kv.Value})
	}
	s.KV.Set("general.architecture", "gemma3")
	s.KV.Set("gemma3.attention.sliding_window", uint32(GemmaWindow))
	s.KV.Set("gemma3.attention.sliding_window_pattern", []bool{true, false})
	s.KV.Set("gemma3.rope.freq_base_swa", float32(10000))
	rng := rand.New(rand.NewPCG(7, 3))
	for _, t := range src.List {
		s.List = append(s.List, t)
		prefix, is := strings.CutSuffix(t.Name, "attn_norm.weight")
		if !is {
			continue
		}
		for _, name := range []string{"post_attention_norm", "post_ffw_norm"} {
			norm := make([]float32, t.Cols())
			for i := range norm {
				norm[i] = float32(1 + 0.2*rng.NormFloat64())
			}
			s.add(prefix+name+".weight", t.Shape, norm)
		}
	}
	return s
}
