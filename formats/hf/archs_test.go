package hf

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf/object"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/tokenizer"
)

// archFolder reads what loadTokenizer needs to know of a folder of ../shared/archs.
func archFolder(t testing.TB, dir string) (m tokenizerModel, pre string) {
	t.Helper()
	data, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		t.Fatal(err)
	}
	if m.config, err = object.Parse("config.json", data); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Architectures []string
		Vocab         int `json:"vocab_size"`
		Text          struct {
			Vocab int `json:"vocab_size"`
		} `json:"text_config"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		t.Fatal(err)
	}
	m.quirks, m.vocab = arch.TokenizerOf(config.Architectures[0]), max(config.Vocab, config.Text.Vocab)
	var about struct {
		Pre string `json:"tokenizer_pre"`
	}
	if data, err = os.ReadFile(dir + "/about.json"); err == nil {
		err = json.Unmarshal(data, &about)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m, about.Pre
}

// Of every architecture's folder, the tokenizer's metadata are those that llama.cpp's converter writes, whether the
// pre-tokenizer is named, as it was for the converter, or recognised.
func TestArchTokenizers(t *testing.T) {
	dirs, err := filepath.Glob(shared.Path(t, "archs") + "/*/expected.gguf")
	if err != nil || len(dirs) < 80 {
		t.Fatalf("%d folders, %v", len(dirs), err)
	}
	for _, path := range dirs {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			if plain := dir + "/expected-plain.gguf"; exists(plain) { // the other has tensors of another type
				path = plain
			}
			want, err := gguf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer want.Close()
			m, pre := archFolder(t, dir)
			for _, opt := range []Options{{Pre: pre}, {}} {
				c := &Checkpoint{dir: dir}
				if _, err := c.loadTokenizer(m, opt); err != nil {
					t.Fatal(err)
				}
				compareTokenizer(t, c.md, want.Metadata(), opt.Pre != "")
				for _, w := range c.warnings {
					t.Log(w)
				}
			}
		})
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func compareTokenizer(t *testing.T, got, want gguf.Metadata, preNamed bool) {
	t.Helper()
	for _, kv := range want {
		if !strings.HasPrefix(kv.Key, "tokenizer.") {
			continue
		}
		value, ok := got.Get(kv.Key)
		if !ok {
			t.Errorf("%s is missing, want %.80v", kv.Key, kv.Value)
		} else if kv.Key == "tokenizer.ggml.pre" && !preNamed {
			g, _ := tokenizer.PreByName(value.(string))
			w, _ := tokenizer.PreByName(kv.Value.(string))
			if g != w {
				t.Errorf("pre is %s, want %s", value, kv.Value)
			} else if value != kv.Value {
				t.Logf("pre is %s, want %s", value, kv.Value)
			}
		} else if !reflect.DeepEqual(value, kv.Value) {
			t.Errorf("%s is %.200v, want %.200v", kv.Key, value, kv.Value)
		}
	}
	for _, kv := range got {
		if _, ok := want.Get(kv.Key); !ok && strings.HasPrefix(kv.Key, "tokenizer.") {
			t.Errorf("%s is %.80v, want none", kv.Key, kv.Value)
		}
	}
}

// The ids of texts are those of Hugging Face's tokenizers library, with which llama.cpp agrees on them.
func TestArchIDs(t *testing.T) {
	dir := shared.Path(t, "archs")
	data, err := os.ReadFile(dir + "/tokenize.json")
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Texts []string
		IDs   map[string][][]int32
	}
	if err := json.Unmarshal(data, &want); err != nil || len(want.IDs) < 30 {
		t.Fatalf("%d tokenizers, %v", len(want.IDs), err)
	}
	for name, ids := range want.IDs {
		c := &Checkpoint{dir: filepath.Join(dir, name)}
		m, _ := archFolder(t, c.dir)
		if _, err := c.loadTokenizer(m, Options{}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		tok, err := tokenizer.New(c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, text := range want.Texts {
			if got := tok.Encode(text, tokenizer.EncodeOptions{NoBOS: true}); !slices.Equal(got, ids[i]) {
				t.Errorf("%s: %q: got %d, want %d", name, text, got, ids[i])
			}
		}
	}
}
