package testmodel_test

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/tokenizer"
)

// TestFolder opens each model's folder and expects what Source says in memory: two independent ways from Hugging Face's
// conventions to GGUF's.
func TestFolder(t *testing.T) {
	for _, name := range testmodel.Names() {
		t.Run(name, func(t *testing.T) {
			tm := testmodel.New(name)
			dir := t.TempDir()
			if err := tm.WriteFolder(dir); err != nil {
				t.Fatal(err)
			}
			folder, err := hf.Open(dir, hf.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer folder.Close()
			windows := 0 // which llama.cpp does without
			if tm.Config.SlidingWindow != 0 {
				windows = 1
			}
			if w := folder.Warnings(); len(w) != windows || windows > 0 && !strings.Contains(w[0], "sliding_window") {
				t.Errorf("warnings: %q", w)
			}
			src := tm.Source()
			for _, kv := range src.KV {
				if got, ok := folder.Meta(kv.Key); kv.Key != "general.name" && (!ok || !reflect.DeepEqual(got, kv.Value)) {
					t.Errorf("%s is %v, want %v", kv.Key, got, kv.Value)
				}
			}
			names := map[string]bool{}
			for _, info := range folder.Tensors() {
				names[info.Name] = true
				want := src.Find(info.Name)
				if want == nil {
					t.Errorf("%s: there should be no such tensor", info.Name)
					continue
				}
				got, err := folder.Tensor(info.Name)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got.Shape, want.Shape) {
					t.Errorf("%s: shape %v, want %v", info.Name, got.Shape, want.Shape)
					continue
				}
				g, w := make([]float32, got.Elements()), make([]float32, want.Elements())
				got.Type.Unpack(g, got.Data)
				want.Type.Unpack(w, want.Data)
				for i := range g {
					// The factors of RoPE are computed, all others copied.
					if d := g[i] - w[i]; d != 0 && !(info.Name == "rope_freqs.weight" && d*d < 1e-12*w[i]*w[i]) {
						t.Errorf("%s: element %d is %g, want %g", info.Name, i, g[i], w[i])
						break
					}
				}
			}
			if len(names) != len(src.List) {
				t.Errorf("%d tensors, want %d", len(names), len(src.List))
			}
		})
	}
}

// TestSame makes a model twice.
func TestSame(t *testing.T) {
	a, b := testmodel.New("qwen2").Source(), testmodel.New("qwen2").Source()
	for i := range a.List {
		if !bytes.Equal(a.List[i].Data, b.List[i].Data) {
			t.Errorf("%s differs between two models of the same name", a.List[i].Name)
		}
	}
	if w := a.Find("blk.0.ffn_up.weight"); bytes.Equal(w.Data, a.Find("blk.1.ffn_up.weight").Data) {
		t.Error("two layers are equal")
	}
}

// TestTokenizer encodes and decodes with a model's vocabulary.
func TestTokenizer(t *testing.T) {
	for _, name := range []string{"llama", "qwen3"} {
		src := testmodel.New(name).Source()
		tok, err := tokenizer.New(src)
		if err != nil {
			t.Fatal(err)
		}
		const text = "func (t *T) the thing() error {\n\n    return 12345 // – ü 漢\n}"
		ids := tok.Encode(text, tokenizer.EncodeOptions{})
		if got := tok.Decode(ids); got != text {
			t.Errorf("%s: %q comes back as %q", name, text, got)
		}
		if bos, add := tok.BOS(); add != (name == "llama") || add && ids[0] != bos {
			t.Errorf("%s: BOS %d, added %v, first id %d", name, bos, add, ids[0])
		}
		if len(ids) >= len(text) {
			t.Errorf("%s: %d ids for %d bytes: no merge took place", name, len(ids), len(text))
		}
	}
}
