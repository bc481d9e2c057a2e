//go:build interop

package interop

import (
	"encoding/json"
	"fmt"
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
	Error      string         `json:"error"`
	Release    string         `json:"release"`
	Metadata   map[string]any `json:"metadata"`
	Tokens     [][]int32      `json:"tokens"`
	NLL        []float64      `json:"nll"`
	Top        []int32        `json:"top"`
	Perplexity float64        `json:"perplexity"`
}

// askLlamaCpp asks about one file, which must load.
func askLlamaCpp(t *testing.T, req request) *response {
	t.Helper()
	resp := askLlamaCppAll(t, []request{req})[0]
	if resp.Error != "" {
		t.Fatalf("llama.cpp: %s: %s", req.Model, resp.Error)
	}
	return &resp
}

// askLlamaCppAll asks about several files, in one process or, if that dies, in one for each.
func askLlamaCppAll(t *testing.T, reqs []request) []response {
	t.Helper()
	dir := t.TempDir()
	in, out := filepath.Join(dir, "requests.json"), filepath.Join(dir, "responses.json")
	b, err := json.Marshal(reqs)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in, b, 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := exec.CommandContext(t.Context(), "node", "llamacpp.mjs", in, out).CombinedOutput()
	switch {
	case err != nil && len(reqs) == 1:
		return []response{{Error: fmt.Sprintf("%v\n%s", err, log)}}
	case err != nil:
		var all []response
		for _, req := range reqs {
			all = append(all, askLlamaCppAll(t, []request{req})...)
		}
		return all
	}
	if b, err = os.ReadFile(out); err != nil {
		t.Fatal(err)
	}
	var all []response
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for i := range all {
		if all[i].Error != "" {
			all[i].Error += "\n" + string(log)
		}
	}
	return all
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
