package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/hf"
)

// TestContextWarnings: sequences that are longer than what the model was trained for are pointed out, others are not.
func TestContextWarnings(t *testing.T) {
	dir := folder(t, "llama")
	src, err := (&app{}).openSource(t.Context(), dir, hf.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if v, _ := src.Meta("llama.context_length"); v != uint32(256) {
		t.Fatalf("the model was trained for %v tokens", v)
	}
	text := textFile(t, "text", strings.Repeat("the func and then over return string in a range of things\n", 2000))
	out := filepath.Join(t.TempDir(), "out.gguf")
	quantize := []string{"quantize", dir, "-o", out, "--force", "--dry-run", "--calib", text, "--calib-tokens", "5140"}
	eval := []string{"eval", dir, "--text", text, "--chunks", "1"}
	for _, c := range []struct {
		args []string
		flag string
		n    string
		warn int
	}{
		{eval, "--context", "256", 0}, {eval, "--context", "257", 1},
		{append(eval, "--base", dir), "--context", "257", 2},
		{quantize, "--seq-len", "256", 0}, {quantize, "--seq-len", "257", 1},
	} {
		r := must(t, append(append([]string(nil), c.args...), c.flag, c.n)...)
		if got := strings.Count(r.stderr, "was trained for contexts of 256 tokens; it is not made for sequences of "+c.n); got != c.warn {
			t.Errorf("%v %s: %d warnings, want %d: %q", c.args, c.n, got, c.warn, r.stderr)
		}
	}
}

// TestWithoutEffect: options of GPTQ that are given where it has no part are pointed out, those of a recipe are not.
func TestWithoutEffect(t *testing.T) {
	recipe := textFile(t, "recipe.yaml", "method: awq\ndamping: 0.1\n")
	for args, want := range map[string]string{
		"--method rtn --damping 0.1 --refine 0": "llmq: warning: --damping, --refine: no effect, as GPTQ has no part in --method rtn\n",
		"--method awq --act-order=false":        "llmq: warning: --act-order: no effect, as GPTQ has no part in --method awq\n",
		"--damping 0.1":                         "",
		"--method awq+gptq --refine 1":          "",
		"--recipe auto --refine 1":              "",
		"--recipe " + recipe:                    "",
		"--refine 1 --recipe " + recipe:         "llmq: warning: --refine: no effect, as GPTQ has no part in --method awq\n",
	} {
		if r := must(t, append([]string{"quantize", "--print-recipe"}, strings.Fields(args)...)...); r.stderr != want {
			t.Errorf("%s: %q, want %q", args, r.stderr, want)
		}
	}
}
