package main

import (
	"strings"
	"testing"
)

// TestDefaultTokens: a small model is calibrated on more tokens than others, whose text may then have too few.
func TestDefaultTokens(t *testing.T) {
	dir := folder(t, "llama")
	text := textFile(t, "few.txt", strings.Repeat("several words of a text that has fewer tokens than a small model takes\n", 200))
	r := llmq(t, "quantize", dir, "-o", t.TempDir()+"/o.gguf", "--calib", text, "--seq-len", "64", "--type", "q4_0", "--dry-run")
	if r.code != 0 || !strings.Contains(r.stderr, " tokens instead of 131072: the text has no more") {
		t.Errorf("exit code %d, %s", r.code, r.stderr)
	}
}
