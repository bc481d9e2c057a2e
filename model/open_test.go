package model_test

import (
	"encoding/binary"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// TestOpenErrors breaks a sound model in one place at a time.
func TestOpenErrors(t *testing.T) {
	set := func(key string, value any) func(*testmodel.Source) {
		return func(s *testmodel.Source) { s.KV.Set(key, value) }
	}
	unset := func(key string) func(*testmodel.Source) {
		return func(s *testmodel.Source) {
			i := slices.IndexFunc(s.KV, func(kv gguf.KV) bool { return kv.Key == key })
			s.KV = slices.Delete(s.KV, i, i+1)
		}
	}
	drop := func(name string) func(*testmodel.Source) {
		return func(s *testmodel.Source) {
			s.List = slices.DeleteFunc(s.List, func(t ggml.Tensor) bool { return t.Name == name })
		}
	}
	for _, c := range []struct {
		name  string
		model string
		spoil func(*testmodel.Source)
		want  string
	}{
		{"no architecture", "llama", unset("general.architecture"), "general.architecture: the key is missing"},
		{"another architecture", "llama", set("general.architecture", "nosuch"), `"nosuch", supported are ` + strings.Join(arch.Names(), ", ")},
		{"architecture not a string", "llama", set("general.architecture", uint32(7)), `"7", supported`},
		{"no layers", "llama", set("llama.block_count", uint32(0)), "llama.block_count: is 0, want 1 to"},
		{"absurd layers", "llama", set("llama.block_count", uint32(math.MaxUint32)), "block_count: is 4294967295"},
		{"more layers than tensors", "llama", set("llama.block_count", uint32(3)), `"blk.2.attn_k.weight" is missing`},
		{"fewer layers than tensors", "llama", set("llama.block_count", uint32(1)), "does not belong to a llama model of 1 layers"},
		{"layers not a number", "llama", set("llama.block_count", "2"), "block_count: is string, want one integer"},
		{"per-layer values", "llama", set("llama.feed_forward_length", []int32{511, 512}),
			"feed_forward_length: is 511 for layer 0 and 512 for layer 1: in llama models llmq takes one number for all layers"},
		{"per-layer heads", "llama", set("llama.attention.head_count_kv", []uint32{2, 1}), "head_count_kv: is 2 for layer 0 and 1 for layer 1"},
		{"too few per-layer values", "llama", set("llama.attention.head_count_kv", []uint32{2}), "head_count_kv: is a list of 1, want 2"},
		{"negative", "llama", set("llama.embedding_length", int32(-256)), "embedding_length: is -256"},
		{"width", "llama", set("llama.embedding_length", uint32(512)), "token_embd.weight\" is [279 256], the metadata say [279 512]"},
		{"MLP width", "llama", set("llama.feed_forward_length", uint64(511)), "blk.0.ffn_gate.weight\" is [512 256]"},
		{"MLP width huge", "llama", set("llama.feed_forward_length", uint64(math.MaxUint64)), "feed_forward_length: is 9223372036854775807"},
		{"no context", "llama", unset("llama.context_length"), "llama.context_length: the key is missing"},
		{"heads", "llama", set("llama.attention.head_count", uint32(3)), "is 2, want a divisor of attention.head_count, 3"},
		{"heads do not divide", "llama", func(s *testmodel.Source) {
			s.KV.Set("llama.attention.head_count", uint32(6))
		}, "head_count: is 6, which does not divide embedding_length, 256"},
		{"no key heads", "llama", set("llama.attention.head_count_kv", uint32(0)), "layer 0: attention has 4 heads, 0 of them of keys"},
		{"head size", "mistral", set("llama.attention.key_length", uint32(32)), "\"blk.0.attn_q.weight\" is [96 64], the metadata say [128 64]"},
		{"no epsilon", "qwen2", unset("qwen2.attention.layer_norm_rms_epsilon"), "epsilon: the key is missing"},
		{"epsilon", "qwen2", set("qwen2.attention.layer_norm_rms_epsilon", float32(math.NaN())), "epsilon: is NaN"},
		{"RoPE base", "qwen2", set("qwen2.rope.freq_base", math.Inf(1)), "freq_base: is +Inf"},
		{"RoPE base zero", "qwen2", set("qwen2.rope.freq_base", float32(0)), "freq_base: is 0"},
		{"RoPE dimensions odd", "qwen2", set("qwen2.rope.dimension_count", uint32(7)), "is 7, want an even number up to the head's 16"},
		{"RoPE dimensions", "qwen2", set("qwen2.rope.dimension_count", uint32(18)), "is 18, want an even number"},
		{"RoPE scaling", "qwen2", set("qwen2.rope.scaling.type", "dynamic"), `"dynamic", supported are none, linear, yarn, longrope`},
		{"RoPE scaling factor", "qwen2-yarn", set("qwen2.rope.scaling.factor", float32(-0.5)), "factor: is -0.5"},
		{"RoPE factors, shape", "llama3-tied", func(s *testmodel.Source) { s.Find("rope_freqs.weight").Shape = []int{7} },
			`"rope_freqs.weight" is [7], the metadata say [8]`},
		{"RoPE factors, zero", "llama3-tied", func(s *testmodel.Source) { clear(s.Find("rope_freqs.weight").Data) },
			"element 0 is 0, want a positive factor"},
		{"RoPE factors where none belong", "qwen2", func(s *testmodel.Source) {
			s.List = append(s.List, ggml.Tensor{Info: ggml.Info{Name: "rope_freqs.weight", Type: ggml.F32, Shape: []int{8}}})
		}, `"rope_freqs.weight" does not belong to a qwen2 model`},
		{"a part", "llama", set("split.count", uint16(3)), "split.count: is 3: the file is one of so many parts of a model; join them first"},
		{"experts", "qwen2", set("qwen2.expert_count", uint32(8)), "expert_count: is 8: mixtures of experts are not supported in qwen2 models"},
		{"vocabulary", "llama", set("llama.vocab_size", uint32(300)), `"token_embd.weight" is [279 256], the metadata say [300 256]`},
		{"bytes of the vocabulary", "qwen2", func(s *testmodel.Source) {
			s.Find("token_embd.weight").Shape = []int{math.MaxInt64 - 92, 256}
		}, "vocab_size: is taken from \"token_embd.weight\", which has 9223372036854775715 rows"},
		{"tokens beyond the vocabulary", "llama", set("tokenizer.ggml.tokens", make([]string, 280)), "280 tokens"},
		{"no embeddings", "llama", drop("token_embd.weight"), `no matrix "token_embd.weight"`},
		{"no norm", "qwen3", drop("blk.1.attn_q_norm.weight"), `"blk.1.attn_q_norm.weight" is missing`},
		{"no bias", "qwen2", drop("blk.0.attn_k.bias"), `"blk.0.attn_k.bias" is missing`},
		{"twice", "llama", func(s *testmodel.Source) { s.List = append(s.List, s.List[3]) }, "appears twice"},
		{"unknown tensor", "llama", func(s *testmodel.Source) { s.List[2].Name = "blk.0.ffn_gate_inp.weight" },
			`"blk.0.ffn_gate_inp.weight" does not belong to a llama model`},
		{"transposed", "llama", func(s *testmodel.Source) { s.Find("blk.0.ffn_up.weight").Shape = []int{256, 512} },
			`"blk.0.ffn_up.weight" is [256 512], the metadata say [512 256]`},
		{"no dimension", "llama", func(s *testmodel.Source) { s.Find("blk.0.attn_norm.weight").Shape = nil }, "F32 [] has no dimensions"},
		{"elements", "llama", func(s *testmodel.Source) { s.Find("blk.0.attn_norm.weight").Shape = []int{1 << 32, 1 << 32} },
			`"blk.0.attn_norm.weight": F32 [4294967296 4294967296]: more elements than fit 63 bits`},
		{"elements that wrap around", "llama", func(s *testmodel.Source) { s.Find("blk.0.ffn_up.weight").Shape = []int{1<<56 + 1, 256} },
			"more elements than fit 63 bits"},
		{"no type", "llama", func(s *testmodel.Source) { s.Find("blk.0.attn_norm.weight").Type = nil }, "cannot be decoded"},
		{"block", "qwen2", func(s *testmodel.Source) { s.Find("blk.0.ffn_down.weight").Type = ggml.Q4_0 },
			"rows of 176 are not whole blocks of 32"},
	} {
		src := testmodel.New(c.model).Source()
		c.spoil(src)
		if _, err := arch.Open(src); err == nil || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), src.Path) {
			t.Errorf("%s: error %q, want %q", c.name, err, c.want)
		}
	}
}

// TestLoadErrors breaks what Open does not read.
func TestLoadErrors(t *testing.T) {
	src := testmodel.New("qwen2").Source()
	m := open(t, src)
	if err := m.Embed(tensor.New(2, m.Width), []int32{3, int32(m.Vocab)}, 2, nil); err == nil ||
		!strings.Contains(err.Error(), "token 1 is 279, the vocabulary has 279") {
		t.Errorf("embedding an id beyond the vocabulary: %v", err)
	}
	if err := m.Embed(tensor.New(1, m.Width), []int32{-1}, 1, nil); err == nil {
		t.Error("embedding a negative id: no error")
	}
	up := src.Find("blk.1.ffn_up.weight")
	binary.LittleEndian.PutUint16(up.Data[2*(5*m.Dim+3):], 0x7f80)
	l, err := m.LoadLayer(1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Linears()[5].Matrix(); err == nil || !strings.Contains(err.Error(), "element [5 3] is +Inf") {
		t.Errorf("infinite weight: %v", err)
	}
	if err := m.CheckWeights(t.Context()); err == nil || !strings.Contains(err.Error(), `"blk.1.ffn_up.weight": element [5 3] is +Inf`) {
		t.Errorf("infinite weight: %v", err)
	}
	binary.LittleEndian.PutUint16(up.Data[2*(5*m.Dim+3):], 0)
	if err := m.CheckWeights(t.Context()); err != nil {
		t.Error(err)
	}
	up.Data = up.Data[:100]
	if _, err := m.LoadLayer(1); err == nil || !strings.Contains(err.Error(), "needs 22528 bytes, there are 100") {
		t.Errorf("tensor cut short: %v", err)
	}
	norm := src.Find("blk.1.attn_norm.weight")
	binary.LittleEndian.PutUint32(norm.Data[8:], 0x7fc00000)
	if _, err := m.LoadLayer(1); err == nil || !strings.Contains(err.Error(), "element 2 is NaN") {
		t.Errorf("NaN in a norm: %v", err)
	}
}

// TestListedByLayer: numbers that a file lists for each layer are one number where they are the same, as long as the layers last.
func TestListedByLayer(t *testing.T) {
	src := testmodel.New("llama").Source()
	src.KV.Set("llama.attention.head_count_kv", []uint32{2, 2, 7})
	src.KV.Set("llama.feed_forward_length", []int32{512, 512})
	open(t, src)
}

// TestManyExperts: metadata that claim thousands of layers of thousands of experts are refused before all of them are listed.
func TestManyExperts(t *testing.T) {
	src := testmodel.Experts()
	name, _ := src.KV.Get("general.architecture")
	src.KV.Set(name.(string)+".block_count", uint32(model.MaxLayers))
	src.KV.Set(name.(string)+".expert_count", uint32(model.MaxExperts))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := arch.Open(src)
	runtime.ReadMemStats(&after)
	if err == nil || !strings.Contains(err.Error(), "the metadata say [16384 ") {
		t.Errorf("%v", err)
	}
	if got := after.TotalAlloc - before.TotalAlloc; got > 128<<20 {
		t.Errorf("%d bytes allocated", got)
	}
}
