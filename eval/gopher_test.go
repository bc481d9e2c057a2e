package eval_test

import (
	"go/build"
	"os"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/shared"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tokenizer"
)

// gopher evaluates the built-in model, at the context it was trained with.
func gopher(t *testing.T, content string, chunks int, precision kernels.Precision) *eval.Result {
	t.Helper()
	src, err := hf.Open("../testdata/gopher-4m", hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	m, err := arch.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	m.Precision = precision
	tok, err := tokenizer.New(src)
	if err != nil {
		t.Fatal(err)
	}
	bos, add := tok.BOS()
	if !add {
		t.Fatal("gopher-4m does not ask for a BOS token")
	}
	tokens := tok.Encode(content, tokenizer.EncodeOptions{})
	return perplexity(t, m, tokens, eval.Options{Context: 256, Chunks: chunks, BOS: &bos})
}

// TestGopher evaluates Go source that the built-in model never saw. A model that is run wrongly, or read in the wrong
// order of rows, is hundreds off.
func TestGopher(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(build.Default.GOROOT, "src/bufio/bufio.go"))
	if err != nil {
		t.Fatal(err)
	}
	if r := gopher(t, string(b), 8, kernels.Auto); r.Perplexity < 3 || r.Perplexity > 12 {
		t.Errorf("perplexity of bufio.go is %.3f, want about 6", r.Perplexity)
	}
}

// TestLlamaCpp compares with what llama-perplexity printed for the same model, text and options (refs/peers.md).
func TestLlamaCpp(t *testing.T) {
	content, err := text.ReadUTF8(shared.Path(t, "text/go-test.txt"))
	if err != nil {
		t.Fatal(err)
	}
	r := gopher(t, content, 300, kernels.Auto)
	t.Logf("%.5f ± %.5f at %.0f tokens/s", r.Perplexity, r.StdErr, r.TokensPerSecond)
	near(t, "perplexity", r.Perplexity, 6.3356, 5e-4)
	near(t, "standard error", r.StdErr, 0.077, 0.01)

	// Rounding inputs to bfloat16 must not show.
	auto, exact := gopher(t, content, 30, kernels.Auto), gopher(t, content, 30, kernels.F32)
	near(t, "perplexity with inputs in bfloat16", auto.Perplexity, float64(exact.Perplexity), 5e-4)
}
