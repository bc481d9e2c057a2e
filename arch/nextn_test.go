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
