//go:build interop

package interop

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// request and response are llamacpp.mjs's.
type request struct {
	Model     string    `json:"model"`
	VocabOnly bool      `json:"vocabOnly"`
	Chunks    [][]int32 `json:"chunks"`
	First     int       `json:"first"`
	Texts     []string  `json:"texts"`
}

type response struct {
	Release    string         `json:"release"`
	Metadata   map[string]any `json:"metadata"`
	Tokens     [][]int32      `json:"tokens"`
	NLL        []float64      `json:"nll"`
	Top        []int32        `json:"top"`
	Perplexity float64        `json:"perplexity"`
}

// askLlamaCpp runs llama.cpp in a process of its own.
func askLlamaCpp(t *testing.T, req request) *response {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "request.json"), filepath.Join(dir, "response.json")
	b, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in, b, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := exec.CommandContext(t.Context(), "node", "llamacpp.mjs", in, out).CombinedOutput()
	if err != nil {
		t.Fatalf("llama.cpp: %v\n%s", err, log)
	}
	if b, err = os.ReadFile(out); err != nil {
		t.Fatal(err)
	}
	var resp response
	if err := json.Unmarshal(b, &resp); err != nil {
		t.Fatal(err)
	}
	return &resp
}

// metadata returns a value by its key, whose parts llama.cpp's reader made nested objects of.
func (r *response) metadata(parts ...string) any {
	var v any = r.Metadata
	for _, p := range parts {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}
