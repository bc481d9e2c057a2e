package hf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tokenizer"
)

var _ model.Source = (*Checkpoint)(nil)

const gopher = "../../testdata/gopher-4m"

// settings is config.json of a small model.
type settings map[string]any

func small(class string) settings {
	return settings{
		"architectures": []string{class}, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
		"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 128,
		"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0,
	}
}

// with returns a copy with some members changed; nil removes one.
func (s settings) with(changes settings) settings {
	c := maps.Clone(s)
	for k, v := range changes {
		if c[k] = v; v == nil {
			delete(c, k)
		}
	}
	return c
}

func (s settings) json(t testing.TB) []byte {
	t.Helper()
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// bytesTokenizer is a byte-level tokenizer.json without merges.
func bytesTokenizer(t testing.TB, changes settings) []byte {
	t.Helper()
	vocab := map[string]int{}
	next := 256
	for i := range 256 {
		c := i
		if i < '!' || i > '~' && i < 0xA1 || i == 0xAD {
			c, next = next, next+1
		}
		vocab[string(rune(c))] = i + 1
	}
	return settings{
		"model":         settings{"type": "BPE", "vocab": vocab, "merges": []string{}},
		"pre_tokenizer": settings{"type": "ByteLevel", "add_prefix_space": false},
		"added_tokens":  []settings{{"id": 0, "content": "<|end|>", "special": true}},
	}.with(changes).json(t)
}

func write(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o666); err != nil {
		t.Fatal(err)
	}
}

// number returns a member, or absent.
func (s settings) number(key string, absent int) int {
	if n, ok := s[key].(int); ok {
		return n
	}
	return absent
}

// weights lists the tensors that a checkpoint of the configuration has, as the transformers library writes them.
func weights(s settings) []safetensors.Info {
	var infos []safetensors.Info
	add := func(name string, shape ...int) {
		infos = append(infos, safetensors.Info{Name: name, DType: safetensors.BF16, Shape: shape})
	}
	linear := func(name string, out, in int, bias bool) {
		add(name+".weight", out, in)
		if bias {
			add(name+".bias", out)
		}
	}
	class := s["architectures"].([]string)[0]
	dim, ffn, heads := s.number("hidden_size", 0), s.number("intermediate_size", 0), s.number("num_attention_heads", 0)
	headDim := s.number("head_dim", dim/heads)
	if class == "Qwen3ForCausalLM" {
		headDim = s.number("head_dim", 128)
	}
	q, kv := heads*headDim, s.number("num_key_value_heads", heads)*headDim
	bias := s["attention_bias"] == true
	add("model.embed_tokens.weight", s.number("vocab_size", 0), dim)
	for i := range s.number("num_hidden_layers", 0) {
		p := fmt.Sprintf("model.layers.%d.", i)
		add(p+"input_layernorm.weight", dim)
		linear(p+"self_attn.q_proj", q, dim, bias || class == "Qwen2ForCausalLM")
		linear(p+"self_attn.k_proj", kv, dim, bias || class == "Qwen2ForCausalLM")
		linear(p+"self_attn.v_proj", kv, dim, bias || class == "Qwen2ForCausalLM")
		linear(p+"self_attn.o_proj", dim, q, bias)
		if class == "Qwen3ForCausalLM" {
			add(p+"self_attn.q_norm.weight", headDim)
			add(p+"self_attn.k_norm.weight", headDim)
		}
		add(p+"post_attention_layernorm.weight", dim)
		linear(p+"mlp.gate_proj", ffn, dim, s["mlp_bias"] == true)
		linear(p+"mlp.up_proj", ffn, dim, s["mlp_bias"] == true)
		linear(p+"mlp.down_proj", dim, ffn, s["mlp_bias"] == true)
	}
	add("model.norm.weight", dim)
	if s["tie_word_embeddings"] != true {
		add("lm_head.weight", s.number("vocab_size", 0), dim)
	}
	return infos
}

// folder writes a checkpoint of random weights.
func folder(t testing.TB, s settings, infos []safetensors.Info) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, configFile, s.json(t))
	write(t, dir, tokenizerFile, bytesTokenizer(t, nil))
	w, err := safetensors.Create(filepath.Join(dir, safetensors.SingleFile), infos, nil, safetensors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, info := range infos {
		data := make([]byte, info.Bytes())
		for i := range data {
			data[i] = byte(rng.Uint32())
			if i%2 == 1 {
				data[i] &^= 0x40 // the exponent's highest bit: all numbers are finite
			}
			if info.DType == safetensors.F8E4M3 {
				data[i] &= 0x3f // a positive scale
			}
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustOpen(t testing.TB, dir string) *Checkpoint {
	t.Helper()
	c, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantMeta(t *testing.T, c *Checkpoint, want map[string]any) {
	t.Helper()
	for key, value := range want {
		got, ok := c.Meta(key)
		if ok != (value != nil) || fmt.Sprintf("%T %v", got, got) != fmt.Sprintf("%T %v", value, value) {
			t.Errorf("%s is %T %v, want %T %v", key, got, got, value, value)
		}
	}
}

func TestGopher(t *testing.T) {
	c := mustOpen(t, gopher)
	wantMeta(t, c, map[string]any{
		"general.architecture":                   "llama",
		"general.type":                           "model",
		"general.name":                           "Gopher 4M",
		"general.size_label":                     "4.2M",
		"general.license":                        "apache-2.0",
		"general.tags":                           []string{"go", "llama"},
		"general.languages":                      []string{"code"},
		"general.quantization_version":           uint32(2),
		"general.sampling.temp":                  float32(0.7),
		"llama.block_count":                      uint32(4),
		"llama.context_length":                   uint32(1024),
		"llama.embedding_length":                 uint32(256),
		"llama.feed_forward_length":              uint32(768),
		"llama.attention.head_count":             uint32(4),
		"llama.attention.head_count_kv":          uint32(2),
		"llama.attention.key_length":             uint32(64),
		"llama.attention.value_length":           uint32(64),
		"llama.attention.layer_norm_rms_epsilon": float32(1e-5),
		"llama.attention.sliding_window":         nil,
		"llama.rope.dimension_count":             uint32(64),
		"llama.rope.freq_base":                   float32(500000),
		"llama.rope.scaling.type":                nil,
		"llama.vocab_size":                       uint32(2048),
		"tokenizer.ggml.model":                   "gpt2",
		"tokenizer.ggml.pre":                     "llama-bpe",
		"tokenizer.ggml.bos_token_id":            uint32(2046),
		"tokenizer.ggml.eos_token_id":            uint32(2047),
		"tokenizer.ggml.add_bos_token":           true,
	})
	if len(c.Warnings()) > 0 {
		t.Errorf("warnings: %q", c.Warnings())
	}
	if n := len(c.Tensors()); n != 3+4*9 {
		t.Errorf("%d tensors", n)
	}
	for i := range c.Tensors() {
		info := &c.Tensors()[i]
		tensor, err := c.Tensor(info.Name)
		if err != nil || int64(len(tensor.Data)) != info.Bytes() {
			t.Errorf("%s: %d bytes, want %d; %v", info.Name, len(tensor.Data), info.Bytes(), err)
		}
		c.Release(tensor)
	}
	if _, err := arch.Open(c); err != nil {
		t.Error(err)
	}
	tok, err := tokenizer.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Encode("func main() {", tokenizer.EncodeOptions{}); !slices.Equal(got, []int32{2046, 344, 1998,
		336, 605}) {
		t.Errorf("got ids %v", got)
	}
}

func TestQwen3Shared(t *testing.T) {
	c := mustOpen(t, shared.Path(t, "models/gopher-6m-qwen3"))
	wantMeta(t, c, map[string]any{
		"general.architecture": "qwen3", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.add_bos_token": false,
	})
	if _, err := arch.Open(c); err != nil {
		t.Error(err)
	}
}

// Rotating neighbouring elements of q's and k's rows, as GGUF has them, gives what rotating half a head apart gives of the
// checkpoint's.
func TestPairs(t *testing.T) {
	const headDim = 10
	s := small("LlamaForCausalLM").with(settings{"head_dim": headDim, "attention_bias": true})
	dir := folder(t, s, weights(s))
	c := mustOpen(t, dir)
	st, err := safetensors.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for gguf, name := range map[string]string{
		"blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight", "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight",
		"blk.1.attn_q.bias": "model.layers.1.self_attn.q_proj.bias", "blk.0.attn_k.bias": "model.layers.0.self_attn.k_proj.bias",
	} {
		before, info, err := st.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		after, err := c.Tensor(gguf)
		if err != nil || len(after.Data) != len(before) {
			t.Fatalf("%s: %d bytes, want %d; %v", gguf, len(after.Data), len(before), err)
		}
		row := len(before) / info.Shape[0]
		at := func(data []byte, i int) []byte { return data[i*row : (i+1)*row] }
		for head := 0; head < info.Shape[0]; head += headDim {
			for j := range headDim / 2 { // j and j+headDim/2 are a pair
				if !bytes.Equal(at(after.Data, head+2*j), at(before, head+j)) || !bytes.Equal(at(after.Data, head+2*j+1), at(before, head+headDim/2+j)) {
					t.Errorf("%s: head at row %d: pair %d is not where it belongs", gguf, head, j)
				}
			}
		}
		// Rows can be had by themselves.
		if len(info.Shape) == 2 {
			some, err := c.Rows(gguf, 3, 17)
			if err != nil || !bytes.Equal(some.Data, after.Data[3*row:17*row]) {
				t.Errorf("%s: rows 3 to 16 differ from those of the whole; %v", gguf, err)
			}
		}
	}
}

// Every architecture opens, with exactly the tensors that package model wants of it.
func TestArchitectures(t *testing.T) {
	for _, c := range []struct {
		settings settings
		tensors  int // of a layer
		meta     map[string]any
	}{
		{small("LlamaForCausalLM"), 9, map[string]any{"general.architecture": "llama",
			"llama.attention.sliding_window": nil}},
		{small("LlamaForCausalLM").with(settings{"attention_bias": true, "mlp_bias": true, "head_dim": 16}), 16,
			map[string]any{"llama.attention.key_length": uint32(16), "llama.rope.dimension_count": uint32(16)}},
		{small("LlamaForCausalLM").with(settings{"num_key_value_heads": nil, "tie_word_embeddings": true}), 9,
			map[string]any{"llama.attention.head_count_kv": nil}},
		// What the transformers library takes for members that are not there.
		{small("LlamaForCausalLM").with(settings{"rms_norm_eps": nil, "max_position_embeddings": nil}), 9,
			map[string]any{"llama.attention.layer_norm_rms_epsilon": float32(1e-6), "llama.context_length": uint32(2048)}},
		{small("MistralForCausalLM").with(settings{"sliding_window": 64}), 9,
			map[string]any{"general.architecture": "llama", "llama.attention.sliding_window": uint32(64)}},
		{small("MistralForCausalLM"), 9, map[string]any{"llama.attention.sliding_window": uint32(4096)}},
		{small("MistralForCausalLM").with(settings{"sliding_window": json.RawMessage("null")}), 9,
			map[string]any{"llama.attention.sliding_window": nil}},
		{small("Qwen2ForCausalLM").with(settings{"sliding_window": 64, "use_sliding_window": false}), 12,
			map[string]any{"general.architecture": "qwen2", "qwen2.attention.sliding_window": nil}},
		{small("Qwen2ForCausalLM").with(settings{"sliding_window": 64, "use_sliding_window": true,
			"max_window_layers": 0}), 12,
			map[string]any{"qwen2.attention.sliding_window": uint32(64)}},
		{small("Qwen2ForCausalLM").with(settings{"sliding_window": 64, "use_sliding_window": true,
			"max_window_layers": 2}), 12,
			map[string]any{"qwen2.attention.sliding_window": nil}},
		{small("Qwen2ForCausalLM").with(settings{"sliding_window": 64, "use_sliding_window": true,
			"max_window_layers": 1}), 12,
			map[string]any{"qwen2.attention.sliding_window": uint32(64),
				"qwen2.attention.sliding_window_pattern": []bool{false, true}}},
		{small("Qwen3ForCausalLM").with(settings{"tie_word_embeddings": true}), 11,
			map[string]any{"general.architecture": "qwen3"}},
	} {
		name := c.settings["architectures"].([]string)[0]
		infos := weights(c.settings)
		ck := mustOpen(t, folder(t, c.settings, infos))
		wantMeta(t, ck, c.meta)
		outer := 3
		if c.settings["tie_word_embeddings"] == true {
			outer = 2
		}
		if n := len(ck.Tensors()); n != outer+2*c.tensors {
			t.Errorf("%s: %d tensors, want %d", name, n, outer+2*c.tensors)
		}
		if _, err := arch.Open(ck); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRoPE(t *testing.T) {
	scaled := func(class, key string, rope settings) settings {
		return small(class).with(settings{key: rope, "head_dim": 128})
	}
	llama3 := settings{
		"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4,
		"original_max_position_embeddings": 8192, "rope_theta": 5e5,
	}
	s := scaled("LlamaForCausalLM", "rope_parameters", llama3)
	c := mustOpen(t, folder(t, s, weights(s)))
	wantMeta(t, c, map[string]any{"llama.rope.freq_base": float32(5e5), "llama.rope.scaling.type": nil})
	tensor, err := c.Tensor("rope_freqs.weight")
	if err != nil || !slices.Equal(tensor.Shape, []int{64}) || tensor.Type.Name != "F32" {
		t.Fatalf("rope_freqs.weight: %+v, %v", tensor, err)
	}
	// The formula of Llama 3.1's reference code, evaluated apart from this program.
	for i, want := range map[int]float64{0: 1, 28: 1, 29: 1.207484, 30: 1.553415, 32: 2.69453, 34: 5.257327, 35: 8,
		63: 8} {
		if got := math.Float32frombits(binary.LittleEndian.Uint32(tensor.Data[4*i:])); math.Abs(float64(got)-want) > 1e-5 {
			t.Errorf("factor %d is %g, want %g", i, got, want)
		}
	}
	if _, err := arch.Open(c); err != nil {
		t.Error(err)
	}

	for _, rope := range []struct {
		settings settings
		meta     map[string]any
	}{
		{scaled("LlamaForCausalLM", "rope_scaling", settings{"type": "linear", "factor": 2.5}), map[string]any{
			"llama.rope.freq_base": float32(10000), "llama.rope.scaling.type": "linear",
			"llama.rope.scaling.factor": float32(2.5)}},
		{scaled("LlamaForCausalLM", "rope_scaling", settings{"rope_type": "default"}),
			map[string]any{"llama.rope.scaling.type": nil}},
		{scaled("Qwen2ForCausalLM", "rope_scaling", settings{"rope_type": "yarn", "factor": 4,
			"original_max_position_embeddings": 32}),
			map[string]any{
				"qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": float32(4),
				"qwen2.rope.scaling.original_context_length": uint32(32),
				"qwen2.rope.scaling.yarn_beta_fast":          nil, // 32 and 1 for readers
				"qwen2.rope.scaling.yarn_beta_slow":          nil, "qwen2.rope.scaling.attn_factor": nil}},
		{scaled("Qwen3ForCausalLM", "rope_scaling", settings{"rope_type": "yarn", "factor": math.E,
			"attention_factor": 2.2}),
			map[string]any{
				"qwen3.rope.scaling.original_context_length": uint32(128),
				"qwen3.rope.scaling.attn_factor":             float32(2)}},
	} {
		c := mustOpen(t, folder(t, rope.settings, weights(rope.settings)))
		wantMeta(t, c, rope.meta)
	}
}

func TestBadConfig(t *testing.T) {
	ok := small("LlamaForCausalLM")
	for _, c := range []struct {
		changes settings
		want    string
	}{
		{settings{"architectures": nil}, "architectures: is missing"},
		{settings{"architectures": "LlamaForCausalLM"}, `architectures: is "LlamaForCausalLM", want a list`},
		{settings{"architectures": []string{"MambaForCausalLM"}},
			`"MambaForCausalLM" is not supported; supported: ` + strings.Join(arch.Classes(), ", ")},
		{settings{"hidden_size": nil}, "hidden_size: is missing"},
		{settings{"hidden_size": 0}, "hidden_size: is 0, want 1 to 1048576"},
		{settings{"hidden_size": "32"}, `hidden_size: is "32", want an integer`},
		{settings{"hidden_size": 32.5}, "hidden_size: is 32.5, want an integer"},
		{settings{"hidden_size": []int{32}}, "hidden_size: is [32], want an integer"},
		{settings{"hidden_size": 30}, "num_attention_heads: is 4, which does not divide hidden_size, 30"},
		{settings{"num_hidden_layers": -2}, "num_hidden_layers: is -2, want 1 to 16384"},
		{settings{"num_hidden_layers": json.RawMessage("1e30")}, "num_hidden_layers: is 1e30, want an integer"},
		{settings{"num_hidden_layers": json.RawMessage("99999999999999999999")},
			"num_hidden_layers: is 99999999999999999999, want"},
		{settings{"num_key_value_heads": 3}, "num_key_value_heads: is 3, want a divisor of num_attention_heads, 4"},
		{settings{"num_attention_heads": 1 << 40}, "num_attention_heads: is 1099511627776, want 1 to"},
		{settings{"head_dim": 7}, "head_dim: is 7, of which 7 elements are rotated; want an even number"},
		{settings{"vocab_size": json.RawMessage("null")}, "vocab_size: is missing"},
		{settings{"vocab_size": 1 << 30}, "vocab_size: is 1073741824, want 1 to 16777216"},
		{settings{"rms_norm_eps": -1}, "rms_norm_eps: is -1, want more than 0, at most 1"},
		{settings{"rms_norm_eps": "small"}, `rms_norm_eps: is "small", want a number`},
		{settings{"hidden_act": "gelu"}, `hidden_act: is "gelu"; supported for LlamaForCausalLM: silu`},
		{settings{"tie_word_embeddings": "no"}, `tie_word_embeddings: is "no", want true or false`},
		{settings{"max_position_embeddings": 1 << 31}, "max_position_embeddings: is 2147483648, want 1 to"},
		{settings{"partial_rotary_factor": 0.5}, "partial_rotary_factor: is 0.5, which GGUF readers do not know for LlamaForCausalLM"},
		{settings{"rope_theta": 0}, "rope_theta: is 0, want more than 1"},
		{settings{"rope_scaling": 4}, "rope_scaling: is 4, want an object"},
		{settings{"rope_scaling": settings{"type": "linear"}}, "rope_scaling.factor: is missing"},
		{settings{"rope_scaling": settings{"type": "dynamic", "factor": "two"}}, `rope_scaling.factor: is "two", want a number`},
		{settings{"rope_scaling": settings{"type": "yarn", "factor": 4, "truncate": false}},
			"rope_scaling.truncate: is false: GGUF readers round"},
		{settings{"rope_scaling": settings{"type": "longrope", "long_factor": []int{1}}},
			`rope_scaling.rope_type: is "longrope"; supported for LlamaForCausalLM: default, linear, yarn, llama3`},
		{settings{"rope_scaling": settings{"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
			"high_freq_factor":                 3,
			"original_max_position_embeddings": 64}},
			"rope_scaling.high_freq_factor: is 3, want at least low_freq_factor, 4"},
		{settings{"architectures": []string{"Qwen2ForCausalLM"}, "layer_types": []string{"full_attention"}},
			"layer_types: has 1 elements, want 2, one for each layer"},
		{settings{"architectures": []string{"Qwen2ForCausalLM"}, "layer_types": []string{"full_attention", "linear_attention"}},
			`layer_types: has "linear_attention"; supported for Qwen2ForCausalLM: full_attention, sliding_attention`},
	} {
		_, err := convert(t, "dir/config.json", ok.with(c.changes), ok)
		if err == nil || !strings.HasPrefix(err.Error(), "dir/config.json: ") || !strings.Contains(err.Error(),
			c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
}

// listed are the weights of a checkpoint without their values.
type listed []safetensors.Info

func (l listed) Names() []string {
	var names []string
	for _, info := range l {
		names = append(names, info.Name)
	}
	return names
}

func (l listed) Shape(name string) ([]int, bool) {
	i := slices.IndexFunc(l, func(info safetensors.Info) bool { return info.Name == name })
	if i < 0 {
		return nil, false
	}
	return l[i].Shape, true
}

func (l listed) Blocks(string) bool { return false }

func (l listed) Equal(a, b string) bool { return a == b }

// convert converts a configuration with the weights of another.
func convert(t testing.TB, file string, s, of settings) (*arch.Conversion, error) {
	t.Helper()
	o, err := object.Parse(file, s.json(t))
	if err != nil {
		t.Fatal(err)
	}
	return arch.Convert(o, listed(weights(of)), arch.Options{})
}

func TestTensorErrors(t *testing.T) {
	s := small("Qwen2ForCausalLM")
	edit := func(edit func(infos []safetensors.Info) []safetensors.Info) string {
		return folder(t, s, edit(weights(s)))
	}
	find := func(infos []safetensors.Info, name string) int {
		return slices.IndexFunc(infos, func(i safetensors.Info) bool { return i.Name == name })
	}
	extra := func(name string) func([]safetensors.Info) []safetensors.Info {
		return func(infos []safetensors.Info) []safetensors.Info {
			return append(infos, safetensors.Info{Name: name, DType: safetensors.F32, Shape: []int{4}})
		}
	}
	for _, c := range []struct {
		dir, want string
	}{
		{edit(func(infos []safetensors.Info) []safetensors.Info {
			i := find(infos, "model.layers.1.self_attn.q_proj.bias")
			return slices.Delete(infos, i, i+1)
		}), `tensor "model.layers.1.self_attn.q_proj.bias" is missing; config.json (Qwen2ForCausalLM) calls for it`},
		{edit(func(infos []safetensors.Info) []safetensors.Info {
			infos[find(infos, "model.layers.0.mlp.up_proj.weight")].Shape = []int{32, 48}
			return infos
		}), `tensor "model.layers.0.mlp.up_proj.weight" is [32 48], config.json calls for [48 32]`},
		{edit(func(infos []safetensors.Info) []safetensors.Info {
			infos[find(infos, "model.norm.weight")].DType = safetensors.Bool
			return infos
		}), `tensor "model.norm.weight": BOOL [32] is stored in no format that is known`},
		{edit(extra("model.layers.2.input_layernorm.weight")),
			`tensor "model.layers.2.input_layernorm.weight" [4] is not one that config.json (Qwen2ForCausalLM) calls for`},
		{edit(extra("model.layers.0.self_attn.o_proj.bias")), `o_proj.bias" [4] is not one`},
	} {
		_, err := Open(c.dir, Options{})
		if err == nil || !strings.HasPrefix(err.Error(), "hf: ") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	mustOpen(t, edit(extra("model.layers.0.self_attn.rotary_emb.inv_freq")))

	c := mustOpen(t, gopher)
	if _, err := c.Tensor("nonesuch"); err == nil {
		t.Error("a tensor that is not there was found")
	}
	if _, err := Open(t.TempDir(), Options{}); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("an empty folder: %v", err)
	}
}

// TestWarnings: what has no effect is noted, by name, and nothing else is.
func TestWarnings(t *testing.T) {
	s := small("LlamaForCausalLM")
	for want, changes := range map[string]settings{
		"": {"attention_dropout": 0.1, "torch_dtype": "bfloat16", "use_cache": true, "pad_token_id": 3, "unknown": json.RawMessage("null")},
		"config.json: logit_scale, sliding_window: no effect, LlamaForCausalLM does not read them":               {"sliding_window": 8, "logit_scale": 0.5},
		"config.json: rope_scaling: dynamic scaling begins beyond max_position_embeddings, 128; GGUF readers do": {"rope_scaling": settings{"type": "dynamic", "factor": 2}},
	} {
		c, err := convert(t, "config.json", s.with(changes), s)
		if err != nil {
			t.Errorf("%v: %v", changes, err)
			continue
		}
		if got := strings.Join(c.Warnings, "\n"); got != want && (want == "" || !strings.HasPrefix(got, want)) {
			t.Errorf("%v: warnings %q, want %q", changes, got, want)
		}
	}
}

// TestWindowWarnings: llama.cpp does without some families' windows, and that is said where it matters.
func TestWindowWarnings(t *testing.T) {
	const warning = "; llama.cpp attends to all tokens in "
	for _, test := range []struct {
		class string
		with  settings
		want  int
	}{
		{"MistralForCausalLM", settings{"sliding_window": 100, "max_position_embeddings": 128}, 1},
		{"MistralForCausalLM", settings{"sliding_window": 128, "max_position_embeddings": 128}, 0},
		{"MistralForCausalLM", settings{"sliding_window": nil}, 0},
		{"Qwen2ForCausalLM", settings{"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 0}, 1},
		{"Qwen3ForCausalLM", settings{"sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1, "num_hidden_layers": 2}, 1},
		{"Qwen2ForCausalLM", settings{"sliding_window": 8}, 0},
		{"LlamaForCausalLM", settings{"sliding_window": 8}, 0},
	} {
		s := small(test.class).with(test.with)
		c, err := convert(t, "config.json", s, s)
		if err != nil {
			t.Errorf("%s: %v", test.class, err)
			continue
		}
		if n := strings.Count(strings.Join(c.Warnings, "\n"), warning); n != test.want {
			t.Errorf("%s, %v: %q, want %d warnings of a window", test.class, test.with, c.Warnings, test.want)
		}
	}
}

// TestTiedHead: a head that config.json ties to the embeddings may be stored all the same. It counts if it is another.
func TestTiedHead(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"tie_word_embeddings": true})
	head := safetensors.Info{Name: "lm_head.weight", DType: safetensors.BF16, Shape: []int{300, 32}}
	dir := folder(t, s, append(weights(s), head))
	c := mustOpen(t, dir)
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], `"lm_head.weight" is kept, though tie_word_embeddings is true`) {
		t.Errorf("warnings %q", w)
	}
	out, err := c.Tensor("output.weight")
	if err != nil {
		t.Fatal(err)
	}
	embed, err := c.Tensor("token_embd.weight")
	if err != nil {
		t.Fatal(err)
	}

	// The same with the embeddings' bytes in the head's place.
	path := filepath.Join(dir, safetensors.SingleFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	same := bytes.Replace(data, out.Data, embed.Data, 1)
	if bytes.Equal(same, data) {
		t.Fatal("the head is not in the file")
	}
	equal := t.TempDir()
	write(t, equal, configFile, s.json(t))
	write(t, equal, tokenizerFile, bytesTokenizer(t, nil))
	write(t, equal, safetensors.SingleFile, same)
	c = mustOpen(t, equal)
	if _, err := c.Tensor("output.weight"); err == nil || len(c.Warnings()) > 0 {
		t.Errorf("a copy of the embeddings was kept, warnings %q", c.Warnings())
	}

	head.Shape = []int{4}
	if _, err := Open(folder(t, s, append(weights(s), head)), Options{}); err == nil ||
		!strings.Contains(err.Error(), `tensor "lm_head.weight" is [4], config.json calls for [300 32]`) {
		t.Errorf("a head of another shape: %v", err)
	}
}

// TestNotAFile: a folder or a device in the place of a file is an error, at once.
func TestNotAFile(t *testing.T) {
	s := small("LlamaForCausalLM")
	for _, name := range []string{configFile, tokenizerFile, tokenizerConfigFile, generationFile, cardFile} {
		dir := folder(t, s, weights(s))
		os.Remove(filepath.Join(dir, name))
		put := func() error { return os.Mkdir(filepath.Join(dir, name), 0o777) }
		if _, err := os.Stat("/dev/zero"); err == nil {
			put = func() error { return os.Symlink("/dev/zero", filepath.Join(dir, name)) }
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), name+": not a regular file") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
