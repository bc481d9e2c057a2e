package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
)

// A file that does not name its pre-tokenizer is read, with a warning that its tokens are doubtful.
func TestNoPreTokenizer(t *testing.T) {
	c, err := hf.Open("../../testdata/gopher-4m", hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, without := range []string{"", "tokenizer.ggml.pre"} {
		var md gguf.Metadata
		for _, kv := range c.Metadata() {
			if kv.Key != without {
				md.Set(kv.Key, kv.Value)
			}
		}
		path := filepath.Join(t.TempDir(), "vocab.gguf")
		w, err := gguf.Create(path, md, nil, gguf.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r := must(t, "tokenize", path, "--text", textFile(t, "text", "hello"))
		if got := strings.Contains(r.stderr, "warning: "+path+": there is no tokenizer.ggml.pre"); got != (without != "") {
			t.Errorf("without %q: %s", without, r.stderr)
		}
	}
}
