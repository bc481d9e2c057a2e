package hf

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/gguf"
)

func TestCard(t *testing.T) {
	for _, c := range []struct {
		card string
		want gguf.Metadata
	}{
		{"", nil},
		{"# A model\n\n---\nlicense: mit\n---\n", nil},
		{"---\nlicense: mit", nil},
		{"---\n---\nx", nil},
		{"---\nlicense: mit\n---\ntext", gguf.Metadata{{Key: "general.license", Value: "mit"}}},
		{"\ufeff---\r\nlicense: [mit, other]\r\nlicense_name: x\r\nlicense_link: LICENSE\r\n---\r\n", gguf.Metadata{
			{Key: "general.license", Value: "mit, other"}, {Key: "general.license.name", Value: "x"},
			{Key: "general.license.link", Value: "LICENSE"},
		}},
		{"---\nname: A\nmodel_name: B\nbase_model: org/base-7b\nlanguage: en\ntags:\n- a\n- 7\nmodel-index:\n- x: 1\n---\n",
			gguf.Metadata{
				{Key: "general.name", Value: "B"}, {Key: "general.base_model.count", Value: uint32(1)},
				{Key: "general.base_model.0.name", Value: "base-7b"}, {Key: "general.base_model.0.organization",
					Value: "org"},
				{Key: "general.base_model.0.repo_url", Value: "https://huggingface.co/org/base-7b"},
				{Key: "general.tags", Value: []string{"a", "7"}}, {Key: "general.languages", Value: []string{"en"}},
			}},
		{"---\nbase_model: [one, org/two]\nlicense: null\n---\n", gguf.Metadata{
			{Key: "general.base_model.count", Value: uint32(2)}, {Key: "general.base_model.0.name", Value: "one"},
			{Key: "general.base_model.1.name", Value: "two"}, {Key: "general.base_model.1.organization", Value: "org"},
			{Key: "general.base_model.1.repo_url", Value: "https://huggingface.co/org/two"},
		}},
	} {
		var md gguf.Metadata
		if err := cardMetadata(&md, []byte(c.card)); err != nil {
			t.Errorf("%q: %v", c.card, err)
		}
		for _, kv := range c.want {
			got, ok := md.Get(kv.Key)
			if list, isList := kv.Value.([]string); isList {
				gotList, _ := got.([]string)
				ok = slices.Equal(gotList, list)
			} else {
				ok = ok && got == kv.Value
			}
			if !ok {
				t.Errorf("%q: %s is %v, want %v", c.card, kv.Key, got, kv.Value)
			}
		}
		if len(md) != len(c.want) {
			t.Errorf("%q: got %v", c.card, md)
		}
	}
	c, err := withTokenizer(t, map[string][]byte{cardFile: []byte("---\nlicense: {a: b}\n---\n")}, Options{})
	if err != nil || len(c.Warnings()) != 1 || !strings.Contains(c.Warnings()[0],
		"README.md: its front matter is left out") {
		t.Errorf("a bad card: %v, %q", err, c.Warnings())
	}
}

func TestSizeLabel(t *testing.T) {
	for weights, want := range map[int]string{
		1: "0.0K", 135_000: "135K", 999_499: "999K", 999_500: "1.0M", 4_200_000: "4.2M", 9_949_000: "9.9M",
		9_950_001:     "10M",
		8_030_261_248: "8.0B", 70_553_706_496: "71B", 1_000_000_000_000: "1.0T", 2_000_000_000_000_000: "2000T",
	} {
		if got := roundedCount(weights); got != want {
			t.Errorf("%d: got %s, want %s", weights, got, want)
		}
	}
}

func TestFolderName(t *testing.T) {
	for dir, want := range map[string]string{
		"/models/Qwen3-8B":  "Qwen3-8B",
		"/models/Qwen3-8B/": "Qwen3-8B",
		"/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20de362430cd3b72f300e6b0f18e50e7166e08": "Llama-3.2-1B",
		"/hub/models--acme--a--b/snapshots/4e20de":                                                 "a--b",
		"/hub/models--gpt2/snapshots/607a30":                                                       "gpt2",
		"/backup/snapshots/monday":                                                                 "monday",
		"/":                                                                                        "/",
	} {
		if got, err := folderName(filepath.FromSlash(dir)); err != nil || got != filepath.FromSlash(want) {
			t.Errorf("%s: got %q, %v, want %q", dir, got, err, want)
		}
	}
}

func TestGeneration(t *testing.T) {
	for _, c := range []struct {
		generation settings
		want       map[string]any
	}{
		{settings{"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0, "repetition_penalty": 1.05,
			"do_sample": true}, map[string]any{
			"general.sampling.temp": float32(0.6), "general.sampling.top_k": int32(20),
			"general.sampling.top_p": float32(0.95),
			"general.sampling.min_p": float32(0), "general.sampling.penalty_repeat": float32(1.05),
		}},
		{settings{"temperature": 0.6, "do_sample": false}, map[string]any{"general.sampling.temp": nil}},
		{settings{"top_k": nil}, map[string]any{"general.sampling.top_k": nil, "general.sampling.temp": nil}},
	} {
		ck, err := withTokenizer(t, map[string][]byte{generationFile: c.generation.json(t)}, Options{})
		if err != nil {
			t.Error(err)
			continue
		}
		wantMeta(t, ck, c.want)
	}

	// What sampling has no use for is left out, and said.
	ck, err := withTokenizer(t, map[string][]byte{generationFile: settings{"top_k": -1, "top_p": 1.5, "temperature": 0.6,
		"eos_token_id": []int{0, 1}, "repetition_penalty": "warm"}.json(t)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	wantMeta(t, ck, map[string]any{"general.sampling.top_k": nil, "general.sampling.top_p": nil,
		"general.sampling.temp": float32(0.6)})
	if w := ck.Warnings(); len(w) != 3 || !strings.HasSuffix(w[0], "top_k: is -1, want 0 to 16777216; left out") ||
		!strings.HasSuffix(w[1], "top_p: is 1.5, want more than -1e-09, at most 1; left out") ||
		!strings.HasSuffix(w[2], `repetition_penalty: is "warm", want a number; left out`) {
		t.Errorf("warnings %q", w)
	}
}

// TestTemplateFolder: a folder's name is not a pattern.
func TestTemplateFolder(t *testing.T) {
	s := small("LlamaForCausalLM")
	dir := filepath.Join(t.TempDir(), "model[1]")
	if err := os.Rename(folder(t, s, weights(t, s)), dir); err != nil {
		t.Fatal(err)
	}
	write(t, dir, chatTemplatesDir+"/rag.jinja", []byte("r"))
	write(t, dir, chatTemplatesDir+"/README.md", []byte("no template"))
	wantMeta(t, mustOpen(t, dir), map[string]any{"tokenizer.chat_templates": []string{"rag"},
		"tokenizer.chat_template.rag": "r"})
}

func TestChatTemplate(t *testing.T) {
	inConfig := settings{"chat_template": "config"}.json(t)
	for _, c := range []struct {
		files map[string][]byte
		want  map[string]any
	}{
		{nil, map[string]any{"tokenizer.chat_template": nil, "tokenizer.chat_templates": nil}},
		{map[string][]byte{tokenizerConfigFile: inConfig}, map[string]any{"tokenizer.chat_template": "config"}},
		{map[string][]byte{tokenizerConfigFile: inConfig, chatTemplateFile: []byte("file")},
			map[string]any{"tokenizer.chat_template": "file"}},
		{map[string][]byte{chatTemplateJSON: settings{"chat_template": "json"}.json(t)},
			map[string]any{"tokenizer.chat_template": "json"}},
		{map[string][]byte{chatTemplateFile: []byte("file"), chatTemplatesDir + "/rag.jinja": []byte("r")},
			map[string]any{
				"tokenizer.chat_template": "file", "tokenizer.chat_template.rag": "r",
				"tokenizer.chat_templates": []string{"rag"},
			}},
		{map[string][]byte{tokenizerConfigFile: settings{"chat_template": []settings{
			{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}, {"name": "a b",
				"template": "x"},
		}}.json(t)}, map[string]any{
			"tokenizer.chat_template": "d", "tokenizer.chat_template.tool_use": "t",
			"tokenizer.chat_templates": []string{"tool_use"},
		}},
	} {
		ck, err := withTokenizer(t, c.files, Options{})
		if err != nil {
			t.Error(err)
			continue
		}
		wantMeta(t, ck, c.want)
	}
}
