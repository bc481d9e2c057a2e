package arch_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
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
