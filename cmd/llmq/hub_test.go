package main

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llmq/llmq/hub"
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

// TestHeaders: what reads only headers fetches a model as a whole where its server does not send parts, and nowhere else.
func TestHeaders(t *testing.T) {
	if !hub.Lazily {
		t.Skip("weights do not come in parts on this system")
	}
	dir := folder(t, "llama")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files, weights := map[string][]byte{}, ""
	for _, e := range entries {
		if files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(e.Name()) == ".safetensors" {
			weights = e.Name()
		}
	}
	whole := hubtest.New(t, files)
	whole.Environment(t)
	whole.On(func(_ http.ResponseWriter, r *http.Request, _ string) bool {
		r.Header.Del("Range")
		return false
	})
	must(t, "inspect", onHub)
	if n := whole.Sent(weights); n < int64(len(files[weights])) {
		t.Errorf("%d bytes of the weights were sent, of %d", n, len(files[weights]))
	}
	files[weights] = bytes.Repeat([]byte("no safetensors "), 1<<16)
	broken := hubtest.New(t, files)
	broken.Environment(t)
	if r := llmq(t, "inspect", onHub); r.code != exitFailure || !strings.Contains(r.stderr, "its header's length is") {
		t.Errorf("exit %d, %s", r.code, r.stderr)
	}
	if n := broken.Sent(weights); n > 1<<16 {
		t.Errorf("%d bytes of a file without a header were sent", n)
	}
}

// TestLowDisk: weights that come when they are due give the same file, and none come where none are needed.
func TestLowDisk(t *testing.T) {
	if !hub.Lazily {
		t.Skip("weights do not come in parts on this system")
	}
	dir := folder(t, "llama3-tied")
	h := hubtest.OfFolder(t, dir)
	cache := h.Environment(t)
	out := t.TempDir()
	text := textFile(t, "a.txt", strings.Repeat("The first of these is that of the others.\n", 200))
	quantize := []string{"--calib", text, "--calib-tokens", "512", "--seq-len", "32", "--type", "q4_0", "--embedding-type", "q8_0"}

	must(t, "inspect", onHub)
	must(t, "tokenize", onHub, "--text", text)
	must(t, "convert", onHub, "-o", filepath.Join(out, "x.gguf"), "--dry-run")
	must(t, append([]string{"quantize", onHub, "-o", filepath.Join(out, "x.gguf"), "--dry-run"}, quantize...)...)
	weights := func() (sent int64) {
		for _, name := range []string{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"} {
			sent += h.Sent(name)
		}
		return sent
	}
	const headers = 4 * 2 * 8000 // four commands, two files
	if n := weights(); n == 0 || n > headers {
		t.Errorf("%d bytes of weights' files were sent to commands that read only their headers", n)
	}

	low, full := filepath.Join(out, "low.gguf"), filepath.Join(out, "full.gguf")
	work := filepath.Join(out, "work")
	r := must(t, append([]string{"quantize", onHub, "-o", low, "--low-disk", "--work", work}, quantize...)...)
	if !strings.Contains(r.stderr, "--output-hessian off") {
		t.Errorf("nothing is said of --output-hessian: %q", r.stderr)
	}
	must(t, "convert", onHub, "-o", filepath.Join(out, "low16.gguf"), "--low-disk")
	for _, left := range []string{work + ".checkpoint", filepath.Join(cache, "models--acme--tiny", "blobs", h.Digest("model-00001-of-00002.safetensors"))} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("%s is left", left)
		}
	}
	must(t, append([]string{"quantize", onHub, "-o", full, "--output-hessian", "off"}, quantize...)...)
	sameFiles(t, low, full)
	must(t, "convert", onHub, "-o", filepath.Join(out, "full16.gguf"))
	sameFiles(t, filepath.Join(out, "low16.gguf"), filepath.Join(out, "full16.gguf"))
	if left, _ := filepath.Glob(filepath.Join(out, ".llmq*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}

	for _, c := range []struct{ args, stderr string }{
		{"quantize " + dir + " --method rtn", "--low-disk is for hf:ORG/NAME: " + dir},
		{"quantize hf:acme/tiny --calib " + text + " --max-size 1M", "--low-disk fetches weights once: --max-size"},
		{"quantize hf:acme/tiny --calib " + text + " --recipe auto", "--low-disk fetches weights once: --max-ppl-increase and the method auto"},
		{"quantize hf:acme/tiny --calib " + text + " --int8-fallback 0.1", "--low-disk fetches weights once: --int8-fallback"},
		{"quantize hf:acme/tiny --calib " + text + " --output-hessian on", "--low-disk fetches weights once: --output-hessian on"},
		{"convert hf:acme/tiny --lora x", "give no --lora"},
	} {
		args := append(strings.Fields(c.args), "--low-disk", "-o", filepath.Join(out, "x.gguf"))
		if r := llmq(t, args...); r.code != exitUsage || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("llmq %q: exit %d, %q; want %q", args, r.code, r.stderr, c.stderr)
		}
	}
}

// TestLowDiskUntied: without --work, embeddings that are not the head too go with the first weights, and are not fetched again.
func TestLowDiskUntied(t *testing.T) {
	if !hub.Lazily {
		t.Skip("weights do not come in parts on this system")
	}
	hubtest.OfFolder(t, folder(t, "llama")).Environment(t)
	out := t.TempDir()
	low, full := filepath.Join(out, "low.gguf"), filepath.Join(out, "full.gguf")
	r := must(t, append([]string{"quantize", onHub, "-o", low, "--low-disk"}, calibrate...)...)
	if strings.Contains(r.stderr, "fetched again") {
		t.Errorf("low-disk says %q", r.stderr)
	}
	must(t, append([]string{"quantize", onHub, "-o", full, "--output-hessian", "off"}, calibrate...)...)
	sameFiles(t, low, full)
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	if y, err := os.ReadFile(b); err != nil || !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ, %v", a, b, err)
	}
}
