package testmodel

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
)

// What Experts makes.
const (
	ExpertCount = 7
	ExpertsUsed = 2
	expertFFN   = 64
)

// Experts returns the model "qwen3" as a qwen3moe model, with random experts in the place of its MLPs. No token reaches
// the last expert: the router's rows for the others come in pairs of r and −r, and its own is zero.
func Experts() *Source {
	src := New("qwen3").Source()
	s := &Source{Path: "testmodel/experts"}
	for _, kv := range src.KV {
		if key, ok := strings.CutPrefix(kv.Key, "qwen3."); ok {
			kv.Key = "qwen3moe." + key
		}
		s.KV = append(s.KV, gguf.KV{Key: kv.Key, Value: kv.Value})
	}
	s.KV.Set("general.architecture", "qwen3moe")
	s.KV.Set("qwen3moe.expert_count", uint32(ExpertCount))
	s.KV.Set("qwen3moe.expert_used_count", uint32(ExpertsUsed))
	s.KV.Set("qwen3moe.expert_feed_forward_length", uint32(expertFFN))
	rng := rand.New(rand.NewPCG(7, 2))
	random := func(n, cols int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64() / math.Sqrt(float64(cols)))
		}
		return v
	}
	for _, t := range src.List {
		i := strings.Index(t.Name, "ffn_gate.")
		if i < 0 {
			s.List = append(s.List, t)
			continue
		}
		prefix, dim := t.Name[:i], t.Cols()
		var router []float32
		for range ExpertCount / 2 {
			row := random(dim, dim)
			router = append(router, row...)
			for _, v := range row {
				router = append(router, -v)
			}
		}
		router = append(router, make([]float32, dim)...)
		s.add(prefix+"ffn_gate_inp.weight", []int{ExpertCount, dim}, router)
		s.add(prefix+"ffn_gate_exps.weight", []int{ExpertCount, expertFFN, dim}, random(ExpertCount*expertFFN*dim, dim))
		s.add(prefix+"ffn_up_exps.weight", []int{ExpertCount, expertFFN, dim}, random(ExpertCount*expertFFN*dim, dim))
		s.add(prefix+"ffn_down_exps.weight", []int{ExpertCount, dim, expertFFN}, random(ExpertCount*dim*expertFFN, expertFFN))
	}
	s.List = slices.DeleteFunc(s.List, func(t ggml.Tensor) bool {
		return strings.Contains(t.Name, "ffn_up.") || strings.Contains(t.Name, "ffn_down.")
	})
	return s
}
