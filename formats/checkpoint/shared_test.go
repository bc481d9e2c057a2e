package checkpoint

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/shared"
)

// ggufNames are the stems of the tensors of the reference folders in GGUF.
var ggufNames = map[string]string{
	"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
	"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
	"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
	"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
	"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}

var layerName = regexp.MustCompile(`^model\.layers\.(\d+)\.(.*)$`)

// ggufName maps a tensor of a llama or qwen checkpoint.
func ggufName(name string) string {
	stem, suffix, _ := cutLast(name, ".")
	if m := layerName.FindStringSubmatch(stem); m != nil {
		return "blk." + m[1] + "." + ggufNames[m[2]] + "." + suffix
	}
	return ggufNames[stem] + "." + suffix
}

// TestReferences compares every format with the floats that llama.cpp or the formats' own definition make of it.
func TestReferences(t *testing.T) {
	root := shared.Path(t, "archs")
	for _, name := range []string{"llama", "qwen3", "awq", "bin", "bin-sharded", "bnb-int8", "bnb-nf4", "ct-fp8-block", "ct-fp8-channel", "ct-fp8-tensor",
		"ct-int8", "ct-mxfp4", "ct-w4", "ct-w4-actorder", "ct-w4-channel", "ct-w4-zp", "ct-w8", "fp8-block", "fp8-tensor", "gptq4",
		"gptq4-actorder", "gptq4-v2", "gptq8", "nvfp4-ct", "nvfp4-modelopt", "lora", "lora-rs"} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(root, name)
			b, err := os.ReadFile(filepath.Join(dir, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			var model struct {
				Type  string          `json:"model_type"`
				Heads int             `json:"num_attention_heads"`
				KV    int             `json:"num_key_value_heads"`
				Quant json.RawMessage `json:"quantization_config"`
			}
			if err := json.Unmarshal(b, &model); err != nil {
				t.Fatal(err)
			}
			cfg := Config{Quantization: model.Quant}
			ulps := int64(0)
			if strings.HasPrefix(name, "lora") {
				cfg.LoRA, ulps = filepath.Join(dir, "adapter"), 1
			}
			c, err := Open(dir, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			t.Log(c.Warnings())
			path := filepath.Join(dir, "expected-plain.gguf")
			if _, err := os.Stat(path); err != nil {
				path = filepath.Join(dir, "expected.gguf")
			}
			g, err := gguf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer g.Close()
			seen := 0
			for _, name := range c.Names() {
				want, err := g.Tensor(ggufName(name))
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				seen++
				got := floatsOfTensor(t, c, name)
				heads := map[string]int{"attn_q.weight": model.Heads, "attn_k.weight": model.KV}[ggufName(name)[strings.LastIndex(strings.TrimSuffix(ggufName(name), ".weight"), ".")+1:]]
				if heads > 0 && model.Type == "llama" {
					got = permute(got, heads, want.Shape[1])
				}
				compare(t, name, got, decodeAll(want), ulps)
			}
			if n := len(g.Tensors()); seen != n {
				t.Logf("%d tensors of %d", seen, n)
				for _, info := range g.Tensors() {
					if !strings.HasPrefix(info.Name, "rope_freqs") && seen != n-1 {
						t.Errorf("%d of %d tensors are there", seen, n)
						break
					}
				}
			}
		})
	}
}

// TestEveryFolder reads all rows of every reference checkpoint: each must hold weights, and no integers may be left.
func TestEveryFolder(t *testing.T) {
	root := shared.Path(t, "archs")
	list, err := filepath.Glob(filepath.Join(root, "*", "config.json"))
	if err != nil || len(list) < 80 {
		t.Fatalf("%d folders, %v", len(list), err)
	}
	for _, path := range list {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var model struct {
			Quant json.RawMessage `json:"quantization_config"`
		}
		if err := json.Unmarshal(b, &model); err != nil {
			t.Fatal(err)
		}
		c, err := Open(filepath.Dir(path), Config{Quantization: model.Quant})
		if err != nil {
			t.Error(err)
			continue
		}
		for _, name := range c.Names() {
			for i, w := range floatsOfTensor(t, c, name) {
				if w-w != 0 {
					t.Errorf("%s: %s: weight %d is %g", path, name, i, w)
					break
				}
			}
		}
		c.Close()
	}
}

func decodeAll(w *ggml.Tensor) []float32 {
	dst := make([]float32, w.Elements())
	w.Type.Unpack(dst, w.Data)
	return dst
}

// floatsOfTensor reads a tensor whole, and row by row, which must be the same.
func floatsOfTensor(t *testing.T, c *Checkpoint, name string) []float32 {
	t.Helper()
	info, _ := c.Lookup(name)
	n, cols := matrix(info.Shape)
	c.ReadAhead(name, 0, n)
	whole, err := c.Rows(name, 0, n)
	if err != nil {
		t.Fatal(err)
	}
	var rows []byte
	for r := range n {
		b, err := c.Rows(name, r, r+1)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, b...)
	}
	if string(rows) != string(whole) {
		t.Errorf("%s: rows one by one differ from all at once", name)
	}
	dst := make([]float32, n*cols)
	info.Type.Unpack(dst, whole)
	c.Release(name, 0, n)
	return dst
}

// permute orders the rows of q or k as llama.cpp does: pairs that RoPE rotates side by side.
func permute(w []float32, heads, cols int) []float32 {
	out := make([]float32, len(w))
	rows := len(w) / cols
	d := rows / heads
	for h := range heads {
		for i := range d / 2 {
			for j := range 2 {
				copy(out[(h*d+2*i+j)*cols:][:cols], w[(h*d+j*d/2+i)*cols:])
			}
		}
	}
	return out
}

// compare holds weights against what they must be, bit by bit or nearly; −0, which no integer code is, equals 0.
func compare(t *testing.T, name string, got, want []float32, ulps int64) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d weights, want %d", name, len(got), len(want))
		return
	}
	wrong := 0
	for i := range got {
		d := int64(int32(math.Float32bits(got[i]))) - int64(int32(math.Float32bits(want[i])))
		if (d > ulps || d < -ulps) && (got[i] != 0 || want[i] != 0) {
			if wrong++; wrong == 1 {
				t.Errorf("%s: weight %d is %g, want %g", name, i, got[i], want[i])
			}
		}
	}
	if wrong > 1 {
		t.Errorf("%s: %d of %d weights are wrong", name, wrong, len(got))
	}
}
