package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/internal/hubtest"
)

const onHub = "hf:" + hubtest.Repo

// TestHub: what is made of a model of the hub is what is made of its folder.
func TestHub(t *testing.T) {
	dir := folder(t, "llama")
	h := hubtest.OfFolder(t, dir)
	cache := h.Environment(t)
	out := t.TempDir()
	local, remote := filepath.Join(out, "local.gguf"), filepath.Join(out, "remote.gguf")

	r := must(t, "convert", onHub, "-o", remote)
	if !strings.Contains(r.stderr, "download: model.safetensors") {
		t.Errorf("the download is not told: %q", r.stderr)
	}
	// A folder's name is that of the model, if its card gives none.
	named := filepath.Join(filepath.Dir(dir), "tiny")
	if err := os.Rename(dir, named); err != nil {
		t.Fatal(err)
	}
	must(t, "convert", named, "-o", local)
	a, err := os.ReadFile(local)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(remote); err != nil || !bytes.Equal(a, b) {
		t.Errorf("files differ, %v", err)
	}

	h.Requests()
	text := textFile(t, "a.txt", "hello")
	must(t, "tokenize", onHub, "--text", text)
	must(t, "inspect", onHub)
	for _, r := range h.Requests() {
		if !strings.HasPrefix(r.Path, "/api/") {
			t.Errorf("%s is fetched again", r.Path)
		}
	}
	r = must(t, "download", onHub)
	if want := filepath.Join(cache, "models--acme--tiny", "snapshots", hubtest.Commit) + "\n"; r.stdout != want {
		t.Errorf("download prints %q, not %q", r.stdout, want)
	}
	copied := filepath.Join(out, "folder")
	must(t, "download", onHub+"@"+hubtest.Commit, "-o", copied, "--connections", "1")
	must(t, "convert", copied, "-o", filepath.Join(out, "copied.gguf"))
}

func TestHubRefusals(t *testing.T) {
	h := hubtest.New(t, map[string][]byte{})
	h.Environment(t)
	h.On(func(w http.ResponseWriter, _ *http.Request, _ string) bool {
		hubtest.Refuse(w, 403, "GatedRepo")
		return true
	})
	for _, c := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"download acme/tiny", exitUsage, `"acme/tiny": want hf:ORG/NAME`},
		{"download hf:a/b/c", exitUsage, "names no repository"},
		{"inspect hf:a/b/c", exitUsage, "names no repository"},
		{"download hf:acme/tiny --force", exitUsage, "--force is for -o FOLDER"},
		{"download hf:acme/tiny --connections 0", exitUsage, "--connections 0: need 1 to 64"},
		{"download hf:acme/tiny", exitFailure, "llmq: hub: acme/tiny: the repository is gated: visit " + h.URL + "/acme/tiny"},
		{"convert hf:acme/tiny -o x.gguf", exitFailure, "the repository is gated"},
		{"download hf:acme/tiny -o x.gguf", exitFailure, "the repository is gated"},
	} {
		r := llmq(t, strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("llmq %s: exit %d, %q; want %d, %q", c.args, r.code, r.stderr, c.code, c.stderr)
		}
	}
	if left, _ := filepath.Glob("x.gguf*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
