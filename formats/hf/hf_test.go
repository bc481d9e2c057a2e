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

// weights lists what the configuration calls for.
func weights(t testing.TB, s settings) []safetensors.Info {
	t.Helper()
	cfg, err := parseConfig("config.json", s.json(t))
	if err != nil {
		t.Fatal(err)
	}
	specs := cfg.tensors()
	for i := range cfg.layers {
		specs = append(specs, cfg.layerTensors(i)...)
	}
	var infos []safetensors.Info
	for _, spec := range specs {
		infos = append(infos, safetensors.Info{Name: spec.hf, DType: safetensors.BF16, Shape: spec.shape})
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
		}
		if err := w.WriteTensor(info.Name, data); err != nil {
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
		"tokenizer.ggml.add_eos_token":           false,
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
	if _, err := model.Open(c); err != nil {
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
	if _, err := model.Open(c); err != nil {
		t.Error(err)
	}
}

// Rotating neighbouring elements of the interleaved rows gives what rotating half a head apart gives of the original.
func TestInterleave(t *testing.T) {
	const heads, headDim = 3, 10
	rng := rand.New(rand.NewPCG(3, 4))
	for _, dims := range []int{10, 6, 2} {
		rows := make([]byte, 4*heads*headDim)
		for i := range heads * headDim {
			binary.LittleEndian.PutUint32(rows[4*i:], math.Float32bits(float32(rng.NormFloat64())))
		}
		value := func(data []byte, i int) float64 {
			return float64(math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:])))
		}
		mixed := interleave(rows, heads*headDim, heads, dims)
		for h := range heads {
			for j := range dims / 2 {
				sin, cos := math.Sincos(float64(j + 1))
				at := h*headDim + j // j and j+dims/2 are a pair
				x, y := value(rows, at), value(rows, at+dims/2)
				px, py := value(mixed, h*headDim+2*j), value(mixed, h*headDim+2*j+1)
				if x*cos-y*sin != px*cos-py*sin || x*sin+y*cos != px*sin+py*cos {
					t.Errorf("dims %d, head %d, pair %d: (%g,%g) became (%g,%g)", dims, h, j, x, y, px, py)
				}
			}
			for i := dims; i < headDim; i++ {
				if value(rows, h*headDim+i) != value(mixed, h*headDim+i) {
					t.Errorf("dims %d: element %d, which is not rotated, moved", dims, i)
				}
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
			map[string]any{"llama.attention.head_count_kv": uint32(4)}},
		{small("LlamaForCausalLM").with(settings{"partial_rotary_factor": 0.5}), 9,
			map[string]any{"llama.rope.dimension_count": uint32(4), "llama.attention.key_length": uint32(8)}},
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
		{small("Qwen3ForCausalLM").with(settings{"tie_word_embeddings": true}), 11,
			map[string]any{"general.architecture": "qwen3"}},
	} {
		name := c.settings["architectures"].([]string)[0]
		infos := weights(t, c.settings)
		ck := mustOpen(t, folder(t, c.settings, infos))
		wantMeta(t, ck, c.meta)
		outer := 3
		if c.settings["tie_word_embeddings"] == true {
			outer = 2
		}
		if n := len(ck.Tensors()); n != outer+2*c.tensors {
			t.Errorf("%s: %d tensors, want %d", name, n, outer+2*c.tensors)
		}
		if _, err := model.Open(ck); err != nil {
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
	c := mustOpen(t, folder(t, s, weights(t, s)))
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
	if _, err := model.Open(c); err != nil {
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
				"qwen2.rope.scaling.yarn_beta_fast":          float32(32),
				"qwen2.rope.scaling.yarn_beta_slow":          float32(1), "qwen2.rope.scaling.attn_factor": nil}},
		{scaled("Qwen3ForCausalLM", "rope_scaling", settings{"rope_type": "yarn", "factor": math.E,
			"attention_factor": 2.2}),
			map[string]any{
				"qwen3.rope.scaling.original_context_length": uint32(128),
				"qwen3.rope.scaling.attn_factor":             float32(2)}},
	} {
		c := mustOpen(t, folder(t, rope.settings, weights(t, rope.settings)))
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
			`"MambaForCausalLM" is not supported; supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM`},
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
		{settings{"rms_norm_eps": nil}, "rms_norm_eps: is missing"},
		{settings{"rms_norm_eps": -1}, "rms_norm_eps: is -1, want more than 0, at most 1"},
		{settings{"rms_norm_eps": "small"}, `rms_norm_eps: is "small", want a number`},
		{settings{"hidden_act": "gelu"}, `hidden_act: is "gelu"; supported: silu`},
		{settings{"tie_word_embeddings": "no"}, `tie_word_embeddings: is "no", want true or false`},
		{settings{"max_position_embeddings": nil}, "max_position_embeddings: is missing"},
		{settings{"rope_theta": 0}, "rope_theta: is 0, want more than 1"},
		{settings{"rope_scaling": 4}, "rope_scaling: is 4, want an object"},
		{settings{"rope_scaling": settings{"type": "linear"}}, "rope_scaling.factor: is missing"},
		{settings{"rope_scaling": settings{"type": "dynamic", "factor": 2}},
			`rope_scaling.rope_type: is "dynamic"; supported: default, linear, yarn, llama3`},
		{settings{"rope_scaling": settings{"type": "yarn", "factor": 4, "truncate": false}},
			"rope_scaling.truncate: is false: GGUF readers round"},
		{settings{"rope_scaling": settings{"type": "longrope", "long_factor": []int{1}}},
			`rope_scaling.rope_type: is "longrope"; supported: default, linear, yarn, llama3`},
		{settings{"rope_scaling": settings{"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
			"high_freq_factor":                 4,
			"original_max_position_embeddings": 64}},
			"rope_scaling.high_freq_factor: is 4, want more than low_freq_factor, 4"},
		{settings{"architectures": []string{"Qwen2ForCausalLM"}, "use_sliding_window": true, "sliding_window": 8,
			"max_window_layers": 1},
			"max_window_layers: is 1: a sliding window in only some of the layers is not supported"},
		{settings{"quantization_config": settings{"quant_method": "gptq"}},
			"the checkpoint is quantized already (gptq)"},
	} {
		_, err := parseConfig("dir/config.json", ok.with(c.changes).json(t))
		if err == nil || !strings.HasPrefix(err.Error(), "dir/config.json: ") || !strings.Contains(err.Error(),
			c.want) {
			t.Errorf("got %v, want %s", err, c.want)
		}
	}
	for _, text := range []string{"", "null", "[]", "{", `{"a":1} x`} {
		if _, err := parseConfig("config.json", []byte(text)); err == nil || !strings.Contains(err.Error(),
			"not a JSON object") {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestTensorErrors(t *testing.T) {
	s := small("Qwen2ForCausalLM")
	edit := func(edit func(infos []safetensors.Info) []safetensors.Info) string {
		return folder(t, s, edit(weights(t, s)))
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
		}), `tensor "model.layers.1.self_attn.q_proj.bias" is missing; config.json (Qwen2ForCausalLM, 2 layers) calls for it`},
		{edit(func(infos []safetensors.Info) []safetensors.Info {
			infos[find(infos, "model.layers.0.mlp.up_proj.weight")].Shape = []int{32, 48}
			return infos
		}), `model.safetensors: tensor "model.layers.0.mlp.up_proj.weight" is [32 48], config.json calls for [48 32]`},
		{edit(func(infos []safetensors.Info) []safetensors.Info {
			infos[find(infos, "model.norm.weight")].DType = safetensors.Bool
			return infos
		}), `tensor "model.norm.weight" is BOOL; supported: F32, F16, BF16`},
		{edit(extra("model.layers.2.input_layernorm.weight")),
			`tensor "model.layers.2.input_layernorm.weight" [4] is not one that config.json (Qwen2ForCausalLM, 2 layers) calls for`},
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

// TestTiedHead: a head that config.json ties to the embeddings may be stored all the same. It counts if it is another.
func TestTiedHead(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"tie_word_embeddings": true})
	head := safetensors.Info{Name: headName, DType: safetensors.BF16, Shape: []int{300, 32}}
	dir := folder(t, s, append(weights(t, s), head))
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
	if _, err := Open(folder(t, s, append(weights(t, s), head)), Options{}); err == nil ||
		!strings.Contains(err.Error(), `tensor "lm_head.weight" is [4], config.json calls for [300 32]`) {
		t.Errorf("a head of another shape: %v", err)
	}
}

// TestNotAFile: a folder or a device in the place of a file is an error, at once.
func TestNotAFile(t *testing.T) {
	s := small("LlamaForCausalLM")
	for _, name := range []string{configFile, tokenizerFile, tokenizerConfigFile, generationFile, cardFile} {
		dir := folder(t, s, weights(t, s))
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
