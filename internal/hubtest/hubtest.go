// Package hubtest is a server that answers as the Hugging Face hub does, for tests: one model repository, whose large files come by
// a redirect from another server.
package hubtest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The repository.
const (
	Repo   = "acme/tiny"
	Commit = "0123456789abcdef0123456789abcdef01234567"
)

// Request is one that a server was asked.
type Request struct {
	Host, Path, Range, Authorization string
}

// Hub is the hub and the server behind it.
type Hub struct {
	*httptest.Server
	Storage *httptest.Server

	mu       sync.Mutex
	commit   string
	files    map[string][]byte
	lfs      func(path string) bool
	requests []Request
	sent     map[string]int64 // bytes of each file's content
	hook     Hook
}

// Hook answers a request in place of the hub and returns true, or leaves it alone. path is the file's, "" for the list of files.
type Hook func(w http.ResponseWriter, r *http.Request, path string) bool

// New starts servers for a repository of these files. Those in safetensors come from Storage.
func New(t testing.TB, files map[string][]byte) *Hub {
	t.Helper()
	h := &Hub{commit: Commit, files: files, sent: map[string]int64{},
		lfs: func(path string) bool { return filepath.Ext(path) == ".safetensors" }}
	h.Server = httptest.NewServer(http.HandlerFunc(h.serve))
	h.Storage = httptest.NewServer(http.HandlerFunc(h.serveStorage))
	t.Cleanup(h.Server.Close)
	t.Cleanup(h.Storage.Close)
	return h
}

// OfFolder starts servers for a repository of a folder's files.
func OfFolder(t testing.TB, dir string) *Hub {
	t.Helper()
	files := map[string][]byte{}
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if files[f.Name()], err = os.ReadFile(filepath.Join(dir, f.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return New(t, files)
}

// Environment has FromEnvironment of package hub make a client of this hub, with a token and an empty cache, which it returns.
func (h *Hub) Environment(t *testing.T) (cache string) {
	t.Helper()
	home := t.TempDir()
	for _, name := range []string{"HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
		"HF_HUB_DISABLE_IMPLICIT_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		t.Setenv(name, "")
	}
	t.Setenv("HF_ENDPOINT", h.URL)
	t.Setenv("HF_HOME", home)
	t.Setenv("HF_TOKEN", "hf_secret")
	return filepath.Join(home, "hub")
}

// Change sets the repository's commit, and a file of it.
func (h *Hub) Change(commit, path string, content []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commit, h.files[path] = commit, content
}

// On sets the hook of the hub and its storage; nil for none.
func (h *Hub) On(hook Hook) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

// Requests lists what was asked since it was last called.
func (h *Hub) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.requests
	h.requests = nil
	return list
}

// Sent is how many bytes of a file's content were sent.
func (h *Hub) Sent(path string) int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sent[path]
}

// Digest is the name that a file's content has in the hub's cache.
func (h *Hub) Digest(path string) string {
	b := h.files[path]
	if h.lfs(path) {
		s := sha256.Sum256(b)
		return hex.EncodeToString(s[:])
	}
	s := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(b)), b...))
	return hex.EncodeToString(s[:])
}

// note remembers a request, and returns what there is to answer with.
func (h *Hub) note(r *http.Request) (commit string, hook Hook) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, Request{r.Host, r.URL.Path, r.Header.Get("Range"), r.Header.Get("Authorization")})
	return h.commit, h.hook
}

func (h *Hub) content(path string) ([]byte, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	b, ok := h.files[path]
	return b, ok
}

func (h *Hub) serve(w http.ResponseWriter, r *http.Request) {
	commit, hook := h.note(r)
	revision, isList := strings.CutPrefix(r.URL.Path, "/api/models/"+Repo+"/revision/")
	path, isFile := strings.CutPrefix(r.URL.Path, "/"+Repo+"/resolve/"+commit+"/")
	if !isFile {
		path = ""
	}
	switch {
	case hook != nil && hook(w, r, path):
	case isList && revision != "main" && revision != commit:
		Refuse(w, http.StatusNotFound, "RevisionNotFound")
	case isList:
		h.list(w)
	case !isFile:
		Refuse(w, http.StatusNotFound, "RepoNotFound")
	case h.lfs(path):
		http.Redirect(w, r, h.Storage.URL+"/"+path+"?signed=yes", http.StatusFound)
	default:
		h.send(w, r, path)
	}
}

func (h *Hub) serveStorage(w http.ResponseWriter, r *http.Request) {
	_, hook := h.note(r)
	path := strings.TrimPrefix(r.URL.Path, "/")
	if hook == nil || !hook(w, r, path) {
		h.send(w, r, path)
	}
}

// Refuse answers as the hub does when it gives nothing.
func Refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Error-Code", code)
	w.WriteHeader(status)
}

func (h *Hub) list(w http.ResponseWriter) {
	type lfs struct {
		SHA256 string `json:"sha256"`
		Size   int    `json:"size"`
	}
	type sibling struct {
		Name   string `json:"rfilename"`
		Size   int    `json:"size"`
		BlobID string `json:"blobId"`
		LFS    *lfs   `json:"lfs,omitempty"`
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var siblings []sibling
	for path, b := range h.files {
		s := sibling{path, len(b), strings.Repeat("0", 40), nil}
		if h.lfs(path) {
			s.LFS = &lfs{h.Digest(path), len(b)}
		} else {
			s.BlobID = h.Digest(path)
		}
		siblings = append(siblings, s)
	}
	slices.SortFunc(siblings, func(a, b sibling) int { return strings.Compare(a.Name, b.Name) })
	json.NewEncoder(w).Encode(map[string]any{"sha": h.commit, "siblings": siblings})
}

// send answers with a file or the part of it that is asked for.
func (h *Hub) send(w http.ResponseWriter, r *http.Request, path string) {
	b, ok := h.content(path)
	if !ok {
		Refuse(w, http.StatusNotFound, "EntryNotFound")
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&counter{w, h, path}, r, path, time.Time{}, bytes.NewReader(b))
}

// Send answers with at most n bytes of what is asked for of a file, and ends the connection.
func (h *Hub) Send(w http.ResponseWriter, r *http.Request, path string, n int) {
	h.Begin(w, r, path, n)
	panic(http.ErrAbortHandler)
}

// Begin answers with the first n bytes that Send would bring, and leaves the connection open.
func (h *Hub) Begin(w http.ResponseWriter, r *http.Request, path string, n int) {
	h.send(&cutter{w, n}, r, path)
	w.(http.Flusher).Flush()
}

type counter struct {
	http.ResponseWriter
	h    *Hub
	path string
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	c.h.sent[c.path] += int64(n)
	return n, err
}

// cutter lets n bytes through.
type cutter struct {
	http.ResponseWriter
	n int
}

func (c *cutter) Write(p []byte) (int, error) {
	k, err := c.ResponseWriter.Write(p[:min(c.n, len(p))])
	c.n -= k
	if err == nil && k < len(p) {
		err = http.ErrAbortHandler
	}
	return k, err
}
