package tokenizer

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/shared"
)

// llama.cpp's own vocabularies, inputs and outputs.
func TestLlamaCppVocabularies(t *testing.T) {
	dir := shared.Path(t, "vocab")
	for _, name := range []string{"deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "qwen2"} {
		t.Run(name, func(t *testing.T) {
			path := dir + "/ggml-vocab-" + name + ".gguf"
			file, err := gguf.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			tok := mustNew(t, file)
			inputs := strings.Split(read(t, path+".inp"), "\n__ggml_vocab_test__\n")
			outputs := strings.Split(read(t, path+".out"), "\n")
			if len(inputs) != len(outputs) || len(inputs) < 40 {
				t.Fatalf("%d inputs, %d outputs", len(inputs), len(outputs))
			}
			for i, text := range inputs {
				ids := tok.Encode(text, EncodeOptions{NoBOS: true})
				got := strings.Trim(fmt.Sprint(ids), "[]")
				if want := strings.TrimSpace(outputs[i]); got != want {
					t.Errorf("%q:\n got %s\nwant %s", text, got, want)
				}
				if back := tok.Decode(ids); back != text {
					t.Errorf("%q comes back as %q", text, back)
				}
			}
		})
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// BenchmarkEncode tokenizes the package's own sources, repeated to 1.5 MB of text that is not all alike.
func BenchmarkEncode(b *testing.B) {
	var text strings.Builder
	for i := 0; text.Len() < 1500e3; i++ {
		for _, name := range []string{"tokenizer.go", "bpe.go", "pre.go", "split.go", "tokenizer_test.go"} {
			fmt.Fprintf(&text, "%d %s", i*7919, strings.ReplaceAll(read(b, name), "e", string(rune('a'+i%26))))
		}
	}
	m := gopher(b)
	bench := func(name string, m metadata) {
		tok := mustNew(b, m)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(text.Len()))
			for b.Loop() {
				tok.Encode(text.String(), EncodeOptions{})
			}
		})
	}
	for _, pre := range bytePres() {
		bench(pre.Names[0], m.with(keyPre, pre.Names[0]))
	}
	bench("llama (SentencePiece)", tinySPM())
	bench("gemma4", tinyGemma4())
}
