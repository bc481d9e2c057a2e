package hf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	st "github.com/nlpodyssey/safetensors"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/packed"
	"github.com/llmq/llmq/formats/safetensors"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/tensor"
)

// fused are the weights of a model whose checkpoint has q, k and v in one tensor, and gate and up.
func fused(s settings) []safetensors.Info {
	infos := weights(s)
	dim, ffn := s.number("hidden_size", 0), s.number("intermediate_size", 0)
	kv := dim * s.number("num_key_value_heads", 0) / s.number("num_attention_heads", 1)
	var out []safetensors.Info
	for _, info := range infos {
		switch {
		case strings.Contains(info.Name, "q_proj"):
			info.Name, info.Shape = strings.Replace(info.Name, "q_proj", "qkv_proj", 1), []int{dim + 2*kv, dim}
		case strings.Contains(info.Name, "gate_proj"):
			info.Name, info.Shape = strings.Replace(info.Name, "gate_proj", "gate_up_proj", 1), []int{2 * ffn, dim}
		case strings.Contains(info.Name, "k_proj"), strings.Contains(info.Name, "v_proj"), strings.Contains(info.Name, "up_proj"):
			continue
		}
		out = append(out, info)
	}
	return out
}

// experts are the weights of a model with a mixture of so many experts in each layer.
func experts(s settings, n int) []safetensors.Info {
	dim, ffn := s.number("hidden_size", 0), s.number("moe_intermediate_size", 0)
	var out []safetensors.Info
	for _, info := range weights(s.with(settings{"architectures": []string{"Qwen3ForCausalLM"}})) {
		layer, ok := strings.CutSuffix(info.Name, "mlp.gate_proj.weight")
		switch {
		case ok:
			out = append(out, safetensors.Info{Name: layer + "mlp.gate.weight", DType: safetensors.BF16, Shape: []int{n, dim}})
			for e := range n {
				for name, shape := range map[string][]int{"gate": {ffn, dim}, "up": {ffn, dim}, "down": {dim, ffn}} {
					out = append(out, safetensors.Info{Name: fmt.Sprintf("%smlp.experts.%d.%s_proj.weight", layer, e, name), DType: safetensors.BF16, Shape: shape})
				}
			}
		case !strings.Contains(info.Name, ".mlp."):
			out = append(out, info)
		}
	}
	slices.SortFunc(out, func(a, b safetensors.Info) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// linearTypes are the tensors of a checkpoint with the types that a folder has for the layers' linears.
func linearTypes(c *Checkpoint, f *Folder) []ggml.Info {
	infos := slices.Clone(c.Tensors())
	for i := range infos {
		info := &infos[i]
		if strings.HasPrefix(info.Name, "blk.") && len(info.Shape) > 1 && !strings.Contains(info.Name, "ffn_gate_inp") {
			if t := f.Type(info); t != nil {
				info.Type = t
			}
		}
	}
	return infos
}

// TestFolder: what a run writes of each linear is what a reader of the folder finds, bit for bit, wherever the checkpoint has its
// rows; everything else is the checkpoint's.
func TestFolder(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"hidden_size": 64, "intermediate_size": 128})
	moe := s.with(settings{"architectures": []string{"Qwen3MoeForCausalLM"}, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
		"head_dim": 32, "norm_topk_prob": true})
	phi := s.with(settings{"architectures": []string{"Phi3ForCausalLM"}, "original_max_position_embeddings": 128})
	for _, m := range []struct {
		name  string
		s     settings
		infos []safetensors.Info
	}{
		{"llama", s, weights(s)}, {"phi3", phi, fused(phi)}, {"qwen3moe", moe, experts(moe, 3)},
	} {
		dir := folder(t, m.s, m.infos)
		write(t, dir, "chat_template.jinja", []byte("{{ messages }}"))
		write(t, dir, "model.safetensors.index.json.bak", nil)
		for _, as := range []struct {
			format FolderFormat
			scheme packed.Scheme
		}{
			{CompressedTensors, packed.Scheme{Bits: 4, Group: 32}},
			{CompressedTensors, packed.Scheme{Bits: 4, Group: 64}},
			{CompressedTensors, packed.Scheme{Bits: 4, Group: 32, ZeroPoint: true}},
			{CompressedTensors, packed.Scheme{Bits: 8}},
			{GPTQ, packed.Scheme{Bits: 4, Group: 32}},
			{GPTQ, packed.Scheme{Bits: 4, Group: 64, ZeroPoint: true}},
		} {
			if m.name != "llama" && !as.scheme.ZeroPoint { // what packs several rows together
				continue
			}
			t.Run(fmt.Sprintf("%s/%s/%s", m.name, as.format, as.scheme.Name()), func(t *testing.T) {
				c := mustOpen(t, dir)
				f, err := c.Folder(as.format, as.scheme)
				if err != nil {
					t.Fatal(err)
				}
				checkFolder(t, c, f)
			})
		}
	}
}

func checkFolder(t *testing.T, c *Checkpoint, f *Folder) {
	infos := linearTypes(c, f)
	p, err := f.Plan(infos, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	w, err := p.Create(out, false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	rng := rand.New(rand.NewPCG(3, 4))
	want := map[string][]byte{} // of linears: float32
	for _, i := range rng.Perm(len(infos)) {
		info := &infos[i]
		src, err := c.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		if packed.Of(info.Type) == nil {
			if err := w.WriteRows(info.Name, 0, make([]byte, info.Bytes())); err != nil { // what it says of these does not matter
				t.Fatal(err)
			}
			continue
		}
		cols, size := info.Cols(), info.Type.RowBytes(info.Cols())
		row := make([]float32, cols)
		for hi := info.Rows(); hi > 0; { // the last rows first
			lo := max(hi-1-rng.IntN(20), 0)
			data := make([]byte, (hi-lo)*size)
			for r := lo; r < hi; r++ {
				from := src.Type.RowBytes(cols)
				src.Type.Decode(row, src.Data[r*from:(r+1)*from])
				info.Type.Encode(data[(r-lo)*size:(r-lo+1)*size], row, nil)
			}
			if err := w.WriteRows(info.Name, lo, data); err != nil {
				t.Fatal(err)
			}
			want[info.Name] = append(decoded(&ggml.Info{Type: info.Type}, data), want[info.Name]...)
			hi = lo
		}
	}
	if entries, _ := filepath.Glob(filepath.Join(filepath.Dir(out), "out", "*")); len(entries) > 0 {
		t.Errorf("%q are there before Close", entries)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	again := mustOpen(t, out)
	for i := range infos {
		info := &infos[i]
		got, err := again.Tensor(info.Name)
		if err != nil {
			t.Fatal(err)
		}
		data := want[info.Name]
		if data == nil {
			before, _ := c.Tensor(info.Name)
			data = before.Data
		}
		if !slices.Equal(got.Shape, info.Shape) || !bytes.Equal(got.Data, data) {
			t.Errorf("%s is another", info.Name)
		}
	}
	for _, name := range []string{"chat_template.jinja", tokenizerFile} {
		a, err := os.ReadFile(filepath.Join(c.dir, name))
		if err != nil {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(out, name)); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: %v", name, err)
		}
	}
	before, _ := os.ReadFile(filepath.Join(c.dir, configFile))
	config, err := os.ReadFile(filepath.Join(out, configFile))
	if err != nil || !bytes.HasPrefix(config, bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(before), []byte("}")))) || !json.Valid(config) {
		t.Errorf("config.json: %s; %v", config, err)
	}
	shard, err := os.ReadFile(filepath.Join(out, safetensors.SingleFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Deserialize(shard); err != nil {
		t.Error(err)
	}
	var size int64
	for _, name := range append(p.layout.Shards(), append(sortedNames(p.more), configFile)...) {
		info, err := os.Stat(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size != p.Size() {
		t.Errorf("%d bytes were planned, %d are there", p.Size(), size)
	}
}

// TestFolderConfig: what servers read of the format.
func TestFolderConfig(t *testing.T) {
	s := small("Qwen3MoeForCausalLM").with(settings{"hidden_size": 64, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32,
		"head_dim": 32, "norm_topk_prob": true})
	c := mustOpen(t, folder(t, s, experts(s, 2)))
	for _, test := range []struct {
		format FolderFormat
		scheme packed.Scheme
		want   string
	}{
		{CompressedTensors, packed.Scheme{Bits: 4, Group: 32, ZeroPoint: true}, `{"config_groups":{"group_0":{"input_activations":null,` +
			`"output_activations":null,"targets":["Linear"],"weights":{"actorder":null,"block_structure":null,"dynamic":false,"group_size":32,` +
			`"num_bits":4,"observer":"minmax","observer_kwargs":{},"strategy":"group","symmetric":false,"type":"int"}}},"format":"pack-quantized",` +
			`"global_compression_ratio":null,"ignore":["lm_head","model.layers.0.mlp.gate","model.layers.1.mlp.gate"],"kv_cache_scheme":null,` +
			`"quant_method":"compressed-tensors","quantization_status":"compressed"}`},
		{CompressedTensors, packed.Scheme{Bits: 8}, `{"config_groups":{"group_0":{"input_activations":{"actorder":null,"block_structure":null,` +
			`"dynamic":true,"group_size":null,"num_bits":8,"observer":null,"observer_kwargs":{},"strategy":"token","symmetric":true,"type":"int"},` +
			`"output_activations":null,"targets":["Linear"],"weights":{"actorder":null,"block_structure":null,"dynamic":false,"group_size":null,` +
			`"num_bits":8,"observer":"minmax","observer_kwargs":{},"strategy":"channel","symmetric":true,"type":"int"}}},"format":"int-quantized",` +
			`"global_compression_ratio":null,"ignore":["lm_head","model.layers.0.mlp.gate","model.layers.1.mlp.gate"],"kv_cache_scheme":null,` +
			`"quant_method":"compressed-tensors","quantization_status":"compressed"}`},
		{GPTQ, packed.Scheme{Bits: 4, Group: 32}, `{"bits":4,"checkpoint_format":"gptq","desc_act":false,"dynamic":{` +
			`"-:^model\\.layers\\.0\\.mlp\\.gate$":{},"-:^model\\.layers\\.1\\.mlp\\.gate$":{}},"group_size":32,"lm_head":false,` +
			`"meta":{"quantizer":["llmq"]},"pack_dtype":"int32","quant_method":"gptq","sym":true,"true_sequential":true}`},
	} {
		f, err := c.Folder(test.format, test.scheme)
		if err != nil {
			t.Fatal(err)
		}
		p, err := f.Plan(linearTypes(c, f), nil)
		if err != nil {
			t.Fatal(err)
		}
		var config struct {
			Quantization json.RawMessage `json:"quantization_config"`
		}
		var got bytes.Buffer
		if err := json.Unmarshal(p.config, &config); err != nil {
			t.Fatal(err)
		}
		if err := json.Compact(&got, config.Quantization); err != nil || got.String() != test.want {
			t.Errorf("%s %s: %s, want %s; %v", test.format, test.scheme.Name(), &got, test.want, err)
		}
	}
}

// TestFolderRefused: what cannot be written is refused by name before anything is.
func TestFolderRefused(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"hidden_size": 64})
	dir := folder(t, s, weights(s))
	c := mustOpen(t, dir)
	for _, test := range []struct {
		format FolderFormat
		scheme packed.Scheme
		want   string
	}{
		{CompressedTensors, packed.Scheme{Bits: 3}, "3 bits"},
		{CompressedTensors, packed.Scheme{Bits: 4, Group: 16}, "groups of 16 columns"},
		{CompressedTensors, packed.Scheme{Bits: 8, Group: 128}, "one scale for each row"},
		{GPTQ, packed.Scheme{Bits: 8}, "weights of 8 bits are for compressed-tensors"},
	} {
		if _, err := c.Folder(test.format, test.scheme); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v", test.scheme, err)
		}
	}
	f, err := c.Folder(CompressedTensors, packed.Scheme{Bits: 4, Group: 128})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Plan(linearTypes(c, f), nil); err == nil || !strings.Contains(err.Error(), "there is no linear to quantize") {
		t.Errorf("columns that are no multiple of groups: %v", err)
	}
	// Experts of whose linears the groups divide some.
	moe := s.with(settings{"architectures": []string{"Qwen3MoeForCausalLM"}, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
		"head_dim": 32, "norm_topk_prob": true})
	some := mustOpen(t, folder(t, moe, experts(moe, 3)))
	f, _ = some.Folder(GPTQ, packed.Scheme{Bits: 4, Group: 64})
	if _, err := f.Plan(linearTypes(some, f), nil); err == nil || !strings.Contains(err.Error(), `down_proj.weight" [64 32] stays as it is`) {
		t.Errorf("experts in part: %v", err)
	}
	// Mappings that do not give back every row once, as it was.
	for want, spoil := range map[string]func(t *arch.Tensor){
		`row 63 of "model.layers.1.self_attn.o_proj.weight" is in no linear`:                  func(t *arch.Tensor) { t.Parts[0].Count-- },
		`row 1 of "model.layers.1.self_attn.o_proj.weight" is not in one place`:               func(t *arch.Tensor) { t.Parts[0].Row = func(r int) int { return r | 1 } },
		`its columns are in another order than those of "model.layers.1.self_attn.o_proj.wei`: func(t *arch.Tensor) { t.Columns = make([]int, 64) },
		`its values are not those of "model.layers.1.self_attn.o_proj.weight"`:                func(t *arch.Tensor) { t.Change = func([]float32, int) {} },
		`"model.layers.1.self_attn.o_proj.weight" is stored transposed`:                       func(t *arch.Tensor) { t.Parts[0].Transposed = true },
		`tensor "blk.1.attn_output.weight" of the model cannot be brought back`:               func(t *arch.Tensor) { t.Parts = nil },
		`"model.norm.weight" [64] is not the weight of a linear layer`:                        func(t *arch.Tensor) { t.Parts[0].Name = "model.norm.weight" },
	} {
		c := mustOpen(t, dir)
		f, _ := c.Folder(CompressedTensors, packed.Scheme{Bits: 4, Group: 32})
		spoil(c.sources[c.index["blk.1.attn_output.weight"]].Tensor)
		if _, err := f.Plan(linearTypes(c, f), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	// A checkpoint that is quantized, and one whose config.json says so.
	f, _ = mustOpen(t, dir).Folder(GPTQ, packed.Scheme{Bits: 4, Group: 32})
	p, err := f.Plan(linearTypes(f.c, f), nil)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	w, err := p.Create(out, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "were not written completely") {
		t.Errorf("nothing written: %v", err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(out)); len(entries) > 0 {
		t.Errorf("%v left behind", entries)
	}
	write(t, dir, configFile, s.with(settings{"quantization_config": settings{"quant_method": "gptq"}}).json(t))
	f, _ = mustOpen(t, dir).Folder(GPTQ, packed.Scheme{Bits: 4, Group: 32})
	if _, err := f.Plan(linearTypes(f.c, f), nil); err == nil || !strings.Contains(err.Error(), "has a quantization_config") {
		t.Errorf("a quantization_config: %v", err)
	}
}

// TestFolderTwice: a row that comes twice, which would hide one that is missing, is an error that Close remembers.
func TestFolderTwice(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"hidden_size": 64})
	c := mustOpen(t, folder(t, s, weights(s)))
	f, _ := c.Folder(CompressedTensors, packed.Scheme{Bits: 4, Group: 32})
	p, err := f.Plan(linearTypes(c, f), nil)
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.Create(filepath.Join(t.TempDir(), "out"), false)
	if err != nil {
		t.Fatal(err)
	}
	row := make([]byte, f.Type(&ggml.Info{Shape: []int{1, 64}, Type: ggml.BF16}).RowBytes(64))
	if err := w.WriteRows("blk.0.attn_q.weight", 5, row); err != nil {
		t.Fatal(err)
	}
	if err := w.WriteRows("blk.0.attn_q.weight", 5, row); err == nil || !strings.Contains(err.Error(), "was written already") {
		t.Errorf("the same row again: %v", err)
	}
	if err := w.Close(); err == nil || !strings.Contains(err.Error(), "was written already") {
		t.Errorf("Close: %v", err)
	}
}

// TestArchFolders: of the families that ../shared has, each is written and read back, or refused by the name of a tensor.
func TestArchFolders(t *testing.T) {
	if testing.Short() {
		t.Skip("writes and reads dozens of models")
	}
	written := []string{"qwen2", "gemma3", "falcon", "internlm2", "bin-sharded"}
	refused := map[string]string{"gpt2": "is stored transposed", "qwen3vlmoe": "experts.gate_up_proj", "granitemoe": "is not the weight of a linear layer", "falcon-h1": "its values are not those of",
		"deepseek3": `"model.layers.0.self_attn.kv_b_proj.weight"`, "gptq4": "is stored as gptq"}
	for _, name := range slices.Concat(written, sortedNames(refused)) {
		t.Run(name, func(t *testing.T) {
			c := mustOpen(t, filepath.Join(shared.Path(t, "archs"), name))
			f, err := c.Folder(CompressedTensors, packed.Scheme{Bits: 4, Group: 32})
			if err == nil && refused[name] != "" {
				_, err = f.Plan(linearTypes(c, f), nil)
			}
			if why := refused[name]; why != "" {
				if err == nil || !strings.Contains(err.Error(), why) {
					t.Errorf("%v, want %q", err, why)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkFolder(t, c, f)
		})
	}
}

// TestFolderVectors: vectors that a run changes are written as it has them, in the checkpoint's order and type; what it leaves as it
// was is what it was, bit for bit, behind the one that a family adds to its norms too.
func TestFolderVectors(t *testing.T) {
	s := small("LlamaForCausalLM").with(settings{"hidden_size": 64, "intermediate_size": 64, "attention_bias": true})
	gemma := s.with(settings{"architectures": []string{"GemmaForCausalLM"}, "hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "attention_bias": false})
	var plain []safetensors.Info
	for _, info := range weights(gemma) {
		if info.Name != "lm_head.weight" && !strings.HasSuffix(info.Name, ".bias") {
			plain = append(plain, info)
		}
	}
	for _, m := range []struct {
		s     settings
		infos []safetensors.Info
	}{{s, weights(s)}, {gemma, plain}} {
		c := mustOpen(t, folder(t, m.s, m.infos))
		f, err := c.Folder(CompressedTensors, packed.Scheme{Bits: 4, Group: 32})
		if err != nil {
			t.Fatal(err)
		}
		infos := linearTypes(c, f)
		var changed []string
		for _, info := range infos {
			if len(info.Shape) == 1 && strings.HasPrefix(info.Name, "blk.") {
				changed = append(changed, info.Name)
			}
		}
		p, err := f.Plan(infos, changed)
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "out")
		w, err := p.Create(out, false)
		if err != nil {
			t.Fatal(err)
		}
		const scaled = "blk.1.ffn_norm.weight"
		values := map[string][]float32{}
		for _, info := range infos {
			rows := make([]byte, info.Bytes())
			if slices.Contains(changed, info.Name) {
				x, err := c.Tensor(info.Name)
				if err != nil {
					t.Fatal(err)
				}
				v := make([]float32, info.Cols())
				x.Type.Decode(v, x.Data)
				if info.Name == scaled {
					for i := range v {
						v[i] = float32(i) + 1 // exact in bfloat16, and less by one too
					}
				}
				values[info.Name] = v
				rows = make([]byte, 4*len(v))
				tensor.EncodeF32(rows, v)
			}
			if err := w.WriteRows(info.Name, 0, rows); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		again := mustOpen(t, out)
		for _, name := range changed {
			x, err := again.Tensor(name)
			if err != nil {
				t.Fatal(err)
			}
			v := make([]float32, len(values[name]))
			x.Type.Decode(v, x.Data)
			if !slices.Equal(v, values[name]) {
				t.Errorf("%v: %s is %v, want %v", m.s["architectures"], name, v[:4], values[name][:4])
			}
		}
	}
	c := mustOpen(t, folder(t, s, weights(s)))
	f, _ := c.Folder(CompressedTensors, packed.Scheme{Bits: 4, Group: 32})
	c.sources[c.index["blk.0.attn_norm.weight"]].Change = func([]float32, int) {}
	if _, err := f.Plan(linearTypes(c, f), []string{"blk.0.attn_norm.weight"}); err == nil ||
		!strings.Contains(err.Error(), `its values are not those of "model.layers.0.input_layernorm.weight"`) {
		t.Errorf("a change that cannot be undone: %v", err)
	}
}
