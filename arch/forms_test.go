package arch_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
)

// TestNextn gives models a further layer that predicts further tokens, as GGUF counts it: the function stays the same.
func TestNextn(t *testing.T) {
	for _, dir := range references(t) {
		name := filepath.Base(dir)
		if !slices.Contains([]string{"qwen35", "qwen3next", "glm4moe", "bailingmoe2"}, name) {
			continue
		}
		f, err := gguf.Open(filepath.Join(dir, "expected.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		src := &testmodel.Source{Path: name, KV: slices.Clone(f.Metadata())}
		v, _ := f.Meta(name + ".block_count")
		layers := v.(uint32)
		src.KV.Set(name+".block_count", layers+1)
		src.KV.Set(name+".nextn_predict_layers", uint32(1))
		if _, ok := f.Meta(name + ".attention.recurrent_layers"); ok {
			src.KV.Set(name+".attention.recurrent_layers", []bool{true, true, true, false, false})
		}
		for _, info := range f.Tensors() {
			tensor, err := f.Tensor(info.Name)
			if err != nil {
				t.Fatal(err)
			}
			src.List = append(src.List, *tensor)
			if rest, ok := strings.CutPrefix(info.Name, "blk.0."); ok {
				further := *tensor
				further.Name = "blk." + string(rune('0'+layers)) + "." + rest
				src.List = append(src.List, further)
			}
		}
		m, err := arch.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		if m.Layers() != int(layers) || m.Role("blk."+string(rune('0'+layers))+".attn_norm.weight") != model.RoleUnused {
			t.Errorf("%s: %d layers of %d and one more", name, m.Layers(), layers)
		}
		m.Precision = kernels.F32
		compareLogits(t, m, dir)
	}
}

// TestFused gives models what converters make where they are asked to: q, k and v in one tensor, and the experts' gate and
// up. The function stays the same.
func TestFused(t *testing.T) {
	for _, dir := range references(t) {
		name := filepath.Base(dir)
		if !slices.Contains([]string{"llama", "qwen2moe", "qwen3vlmoe", "granitemoe", "qwen35", "qwen35moe", "cohere2", "gemma4"}, name) {
			continue
		}
		f, err := gguf.Open(filepath.Join(dir, "expected.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		src := &testmodel.Source{Path: name, KV: f.Metadata()}
		fused := 0
		for _, info := range f.Tensors() {
			first, err := f.Tensor(info.Name)
			if err != nil {
				t.Fatal(err)
			}
			one := *first
			one.Data = slices.Clone(first.Data)
			layer, stem, _ := strings.Cut(strings.TrimPrefix(info.Name, "blk."), ".")
			stem, kind, _ := strings.Cut(stem, ".")
			at := func(stem string) string { return "blk." + layer + "." + stem + "." + kind }
			add := func(stem string) {
				next, err := f.Tensor(at(stem))
				if err != nil {
					t.Fatal(err)
				}
				one.Shape = slices.Clone(one.Shape)
				if len(one.Shape) < 3 { // rows after rows
					one.Data = append(one.Data, next.Data...)
					one.Shape[0] += next.Shape[0]
					return
				}
				var both []byte
				n := one.Shape[0]
				for e := range n {
					both = append(both, one.Data[e*len(one.Data)/n:(e+1)*len(one.Data)/n]...)
					both = append(both, next.Data[e*len(next.Data)/n:(e+1)*len(next.Data)/n]...)
				}
				one.Data = both
				one.Shape[1] += next.Shape[1]
			}
			switch stem {
			case "attn_q":
				add("attn_k")
				add("attn_v")
				one.Name = at("attn_qkv")
				fused++
			case "ffn_gate_exps":
				add("ffn_up_exps")
				one.Name = at("ffn_gate_up_exps")
				fused++
			case "attn_k", "attn_v", "ffn_up_exps":
				continue
			}
			src.List = append(src.List, one)
		}
		m, err := arch.Open(src)
		if err != nil {
			t.Fatal(err)
		}
		if fused == 0 {
			t.Errorf("%s: nothing to fuse", name)
		}
		m.Precision, m.TableGELU = kernels.F32, true
		compareLogits(t, m, dir)
	}
}

// TestGLM4V gives a GLM-4 the class and the sections of GLM-4.1V's language model: for text that is the same function, which the logits show,
// though heads turn by halves, so that rows of q and k have other places; llama.cpp's normal_to_neox puts them there.
func TestGLM4V(t *testing.T) {
	from := filepath.Join(shared.Path(t, "archs"), "glm4")
	open := func(sections string) (*hf.Checkpoint, error) {
		data, err := os.ReadFile(filepath.Join(from, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		var text map[string]any
		if err := json.Unmarshal(data, &text); err != nil {
			t.Fatal(err)
		}
		text["model_type"] = "glm4v_text"
		delete(text, "architectures")
		text["rope_scaling"] = map[string]any{"rope_type": "default", "mrope_section": json.RawMessage(sections)}
		data, err = json.Marshal(map[string]any{"architectures": []string{"Glm4vForConditionalGeneration"}, "model_type": "glm4v", "text_config": text})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		return hf.Open(dir, hf.Options{})
	}
	for _, sections := range []string{"[0, 4, 4]", "[8, 0, 0]", "[2, 2, 2, 2]"} {
		if _, err := open(sections); err == nil || !strings.Contains(err.Error(), "mrope_section") {
			t.Errorf("sections %s: error %v", sections, err)
		}
	}
	src, err := open("[2, 3, 3]")
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = kernels.F32
	compareLogits(t, m, from)

	want, err := gguf.Open(filepath.Join(from, "expected.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	// The first head's rows by halves, among the 16 that turn, in the order of pairs.
	order := []int{0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 16, 17}
	for _, name := range []string{"blk.1.attn_q.weight", "blk.1.attn_k.weight"} {
		a, err := want.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := src.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		const heads, rows = 2, 32
		stride, found := len(a.Data)/a.Shape[0], len(b.Data)/b.Shape[0]
		for r := range heads * rows {
			at := r
			if i := r % rows; i < len(order) {
				at = r/rows*rows + order[i]
			}
			if stride != found || !slices.Equal(b.Data[r*stride:][:stride], a.Data[at*stride:][:stride]) {
				t.Fatalf("%s: row %d is not row %d of the checkpoint's", name, r, at)
			}
		}
	}
}
