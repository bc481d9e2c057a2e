package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gofrs/flock"

	"github.com/llmq/llmq/internal/hubtest"
)

// proxied are the requests that went through the proxy of the environment, which net/http reads once.
var proxied struct {
	sync.Mutex
	urls []string
	to   http.Handler
}

func TestMain(m *testing.M) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxied.Lock()
		proxied.urls = append(proxied.urls, r.URL.String())
		to := proxied.to
		proxied.Unlock()
		to.ServeHTTP(w, r)
	}))
	os.Setenv("HTTP_PROXY", proxy.URL) // it does not concern 127.0.0.1
	os.Setenv("NO_PROXY", "")
	code := m.Run()
	proxy.Close()
	os.Exit(code)
}

func random(n int, seed uint64) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

const (
	shard1 = "model-00001-of-00002.safetensors"
	shard2 = "model-00002-of-00002.safetensors"
)

var weights1, weights2 = random(700_000, 2), random(400_000, 3)

// files are those of a repository as they are, with much that is not needed.
func files() map[string][]byte {
	return map[string][]byte{
		"config.json":                  []byte(`{"model_type":"llama"}`),
		"generation_config.json":       []byte(`{}`),
		"tokenizer.json":               random(3000, 1),
		"merges.txt":                   {},
		"chat_template.jinja":          []byte("{{ messages }}"),
		"README.md":                    []byte("# tiny"),
		indexFile:                      fmt.Appendf(nil, `{"weight_map":{"a":%q,"b":%q,"c":%q}}`, shard1, shard2, shard1),
		shard1:                         weights1,
		shard2:                         weights2,
		"consolidated.safetensors":     random(900, 4),
		"pytorch_model.bin":            random(900, 5),
		"pytorch_model.bin.index.json": []byte(`{"weight_map":{"a":"pytorch_model.bin"}}`),
		"tiny.Q4_0.gguf":               random(900, 6),
		"onnx/model.onnx":              random(900, 7),
		"original/consolidated.00.pth": random(900, 8),
		"original/params.json":         []byte("{}"),
		"modeling_tiny.py":             []byte("import os"),
		".gitattributes":               []byte("*.safetensors filter=lfs"),
	}
}

// needed are those of files that are.
var needed = []string{"README.md", "chat_template.jinja", "config.json", "generation_config.json", "merges.txt", shard1, shard2, indexFile,
	"tokenizer.json"}

var ref = Ref{hubtest.Repo, defaultRevision}

// client returns a client of the environment that waits for nothing; waits are what it would have waited, notes what it said.
func client(t *testing.T) (c *Client, waits *[]time.Duration, notes *[]string) {
	t.Helper()
	c, err := FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	waits, notes = new([]time.Duration), new([]string)
	var mu sync.Mutex
	c.sleep = func(ctx context.Context, d time.Duration) error {
		mu.Lock()
		defer mu.Unlock()
		*waits = append(*waits, d)
		return ctx.Err()
	}
	c.Notify = func(s string) {
		mu.Lock()
		defer mu.Unlock()
		*notes = append(*notes, s)
	}
	return c, waits, notes
}

// fetched fetches the repository into the cache.
func fetched(t *testing.T, c *Client) string {
	t.Helper()
	dir, err := c.Snapshot(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// check demands that a folder shows the files that are needed, and no others.
func check(t *testing.T, dir string, want map[string][]byte, names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range list {
		if f.Name() == ".cache" {
			continue
		}
		got = append(got, f.Name())
		if b, err := os.ReadFile(filepath.Join(dir, f.Name())); err != nil || !bytes.Equal(b, want[f.Name()]) {
			t.Errorf("%s: %d bytes, error %v: not what the hub has", f.Name(), len(b), err)
		}
	}
	if names = slices.Sorted(slices.Values(names)); !slices.Equal(got, names) {
		t.Errorf("files %q, want %q", got, names)
	}
}

// TestLayout holds the cache against what huggingface_hub makes: names, links and what is in refs.
func TestLayout(t *testing.T) {
	h := hubtest.New(t, files())
	cache := h.Environment(t)
	c, _, _ := client(t)
	dir := fetched(t, c)
	check(t, dir, files(), needed)

	want := []string{"models--acme--tiny/refs/main = " + hubtest.Commit}
	for _, name := range needed {
		want = append(want, "models--acme--tiny/blobs/"+h.Digest(name), ".locks/models--acme--tiny/"+h.Digest(name)+".lock",
			"models--acme--tiny/snapshots/"+hubtest.Commit+"/"+name+" -> ../../blobs/"+h.Digest(name))
	}
	var got []string
	filepath.WalkDir(cache, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(cache, path)
		rel = filepath.ToSlash(rel)
		if to, err := os.Readlink(path); err == nil {
			rel += " -> " + filepath.ToSlash(to)
		}
		if strings.Contains(rel, "/refs/") {
			b, _ := os.ReadFile(path)
			rel += " = " + string(b)
		}
		got = append(got, rel)
		return nil
	})
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the cache holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestShared: what is in the cache is not fetched again, be it of another commit, without its link, or of another tool.
func TestShared(t *testing.T) {
	all := files()
	h := hubtest.New(t, all)
	h.Environment(t)
	c, _, _ := client(t)
	dir := fetched(t, c)
	h.Requests()
	if again := fetched(t, c); again != dir {
		t.Errorf("the folder is %s, then %s", dir, again)
	}
	if r := h.Requests(); len(r) != 1 {
		t.Errorf("a second run asks %d times, not once for the list: %v", len(r), r)
	}

	second := strings.Repeat("89ab", 10)
	h.Change(second, "README.md", []byte("# tiny, again"))
	dir = fetched(t, c)
	check(t, dir, all, needed)
	if filepath.Base(dir) != second {
		t.Errorf("the folder is %s, not that of commit %s", dir, second)
	}
	for _, r := range h.Requests()[1:] {
		if !strings.HasSuffix(r.Path, "/README.md") {
			t.Errorf("of another commit, %s is fetched again", r.Path)
		}
	}
	if b, err := os.ReadFile(c.refPath(ref)); string(b) != second || err != nil {
		t.Errorf("refs/main is %q, %v", b, err)
	}
	// A commit by its name has no ref.
	if _, err := c.Snapshot(t.Context(), Ref{hubtest.Repo, second}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.refPath(Ref{hubtest.Repo, second})); err == nil {
		t.Error("a commit has a ref")
	}
	// A blob of another size than the repository lists is no blob.
	blob := filepath.Join(c.Cache, ref.folder(), "blobs", h.Digest(shard2))
	if err := os.Truncate(blob, 5); err != nil {
		t.Fatal(err)
	}
	check(t, fetched(t, c), all, needed)
}

// TestResume cuts every connection after some bytes: each goes on where the one before ended, and no byte is sent twice.
func TestResume(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	h.On(func(w http.ResponseWriter, r *http.Request, path string) bool {
		if r.Host == strings.TrimPrefix(h.Storage.URL, "http://") {
			h.Send(w, r, path, 150_000)
		}
		return false
	})
	c, waits, notes := client(t)
	check(t, fetched(t, c), files(), needed)
	for _, name := range []string{shard1, shard2} {
		if n := h.Sent(name); n != int64(len(files()[name])) {
			t.Errorf("%s: %d bytes were sent of %d", name, n, len(files()[name]))
		}
	}
	// 700 000 bytes take 4 further connections, 400 000 take 2; every one brought bytes, so each waits the shortest time.
	if want := slices.Repeat([]time.Duration{firstWait}, 4+2); !slices.Equal(*waits, want) {
		t.Errorf("waits %v, want %v; notes %q", *waits, want, *notes)
	}
}

// TestKill ends a run in the middle of a file; the next asks for the rest alone.
func TestKill(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	ctx, cancel := context.WithCancel(t.Context())
	// The server holds back the end of the file: a quick connection would bring it before the run has ended.
	h.On(func(w http.ResponseWriter, r *http.Request, path string) bool {
		if r.Host == strings.TrimPrefix(h.Storage.URL, "http://") && ctx.Err() == nil {
			h.Begin(w, r, path, 600_000)
			<-ctx.Done()
			panic(http.ErrAbortHandler)
		}
		return false
	})
	c, _, _ := client(t)
	c.Connections = 1
	c.Progress = &progress{on: func(sum int64) {
		if sum > 500_000 {
			cancel()
		}
	}}
	if _, err := c.Snapshot(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	info, err := os.Stat(filepath.Join(c.Cache, ref.folder(), "blobs", h.Digest(shard1)+".incomplete"))
	if err != nil || info.Size() < 400_000 || info.Size() >= 700_000 {
		t.Fatalf("what was fetched is not kept: %v, %v", info, err)
	}
	h.Requests()
	c, _, _ = client(t)
	second := &progress{}
	c.Progress = second
	check(t, fetched(t, c), files(), needed)
	if want := 700_000 - info.Size() + 400_000; second.sum != want {
		t.Errorf("the second run fetches %d bytes, not the %d that are missing", second.sum, want)
	}
	want := fmt.Sprintf("bytes=%d-", info.Size())
	for _, r := range h.Requests() {
		switch {
		case strings.HasSuffix(r.Path, shard1) && r.Range != want:
			t.Errorf("the second run asks for %q of %s, not %q", r.Range, r.Path, want)
		case strings.HasSuffix(r.Path, ".json"):
			t.Errorf("the second run asks for %s again", r.Path)
		}
	}
}

// progress sums what it is told.
type progress struct {
	silent
	mu  sync.Mutex
	sum int64
	on  func(sum int64)
}

func (p *progress) Add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sum += n
	if p.on != nil {
		p.on(p.sum)
	}
}

// TestToken: the token goes to the hub, and to no other server.
func TestToken(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	c, _, _ := client(t)
	fetched(t, c)
	storage := 0
	for _, r := range h.Requests() {
		want := "Bearer hf_secret"
		if "http://"+r.Host == h.Storage.URL {
			want = ""
			storage++
		}
		if r.Authorization != want {
			t.Errorf("%s%s got Authorization %q", r.Host, r.Path, r.Authorization)
		}
	}
	if storage != 2 {
		t.Errorf("%d requests went to the storage, want 2", storage)
	}
	// The token's file is as good.
	t.Setenv("HF_TOKEN", "")
	if err := os.WriteFile(filepath.Join(os.Getenv("HF_HOME"), "token"), []byte("hf_filed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, _, _ = client(t)
	if c.token != "hf_filed" {
		t.Errorf("the token of the file is %q", c.token)
	}
	t.Setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
	if c, _, _ = client(t); c.token != "" {
		t.Error("a token is sent though HF_HUB_DISABLE_IMPLICIT_TOKEN is set")
	}
}

// TestRefusals: what the hub answers when it gives nothing, and what is said of it.
func TestRefusals(t *testing.T) {
	refuse := func(status int, code string) hubtest.Hook {
		return func(w http.ResponseWriter, _ *http.Request, _ string) bool {
			hubtest.Refuse(w, status, code)
			return true
		}
	}
	loop := func(w http.ResponseWriter, r *http.Request, _ string) bool {
		w.Header().Set("Location", r.URL.RequestURI())
		w.WriteHeader(http.StatusFound)
		return true
	}
	gatedFile := func(w http.ResponseWriter, _ *http.Request, path string) bool {
		if path == shard1 {
			w.Header().Set("X-Error-Message", "Access to model acme/tiny is restricted")
			hubtest.Refuse(w, 403, "GatedRepo")
		}
		return path == shard1
	}
	for _, test := range []struct {
		name  string
		hook  hubtest.Hook
		token string
		ref   Ref
		want  []string
	}{
		{"unknown", refuse(401, "RepoNotFound"), "", ref, []string{"acme/tiny: no such repository, or it is private or gated", "HF_TOKEN", "/acme/tiny"}},
		{"401", refuse(401, ""), "", ref, []string{"no such repository, or it is private or gated", "no token is given"}},
		{"token", refuse(401, ""), "hf_x", ref, []string{"401 Unauthorized", "the token of HF_TOKEN may not read it"}},
		{"404", refuse(404, "RepoNotFound"), "hf_x", ref, []string{"no such repository or revision"}},
		{"revision", nil, "", Ref{hubtest.Repo, "v9"}, []string{`acme/tiny: the repository has no revision "v9"`}},
		{"gated", refuse(401, "GatedRepo"), "", ref, []string{"acme/tiny: the repository is gated: visit http", "/acme/tiny to be given access", "HF_TOKEN"}},
		{"gated file", gatedFile, "hf_x", ref, []string{"the repository is gated", "the token of HF_TOKEN", "Access to model"}},
		{"loop", loop, "", ref, []string{"acme/tiny: 127.0.0.1:", ": 10 redirects"}},
		{"teapot", refuse(418, ""), "", ref, []string{"acme/tiny: 127.0.0.1", "418"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := hubtest.New(t, files())
			h.Environment(t)
			t.Setenv("HF_TOKEN", test.token)
			h.On(test.hook)
			c, waits, _ := client(t)
			_, err := c.Snapshot(t.Context(), test.ref)
			if err == nil {
				t.Fatal("no error")
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hf_x") {
				t.Errorf("error %q has the token", err)
			}
			if len(*waits) > 0 {
				t.Errorf("a refusal is tried again after %v", *waits)
			}
		})
	}
}

// TestRetries: a hub that is busy or broken for a while.
func TestRetries(t *testing.T) {
	times := func(n int, status int, after string) hubtest.Hook {
		var mu sync.Mutex
		return func(w http.ResponseWriter, _ *http.Request, path string) bool {
			mu.Lock()
			defer mu.Unlock()
			if n--; n < 0 || path != "" {
				return false
			}
			if after != "" {
				w.Header().Set("Retry-After", after)
			}
			w.WriteHeader(status)
			return true
		}
	}
	const second = time.Second
	for _, test := range []struct {
		name  string
		hook  hubtest.Hook
		waits []time.Duration
		err   string
	}{
		{"429", times(2, 429, "7"), []time.Duration{7 * second, 7 * second}, ""},
		{"500", times(3, 500, ""), []time.Duration{second, 2 * second, 4 * second}, ""},
		{"503 past", times(1, 503, "Wed, 21 Oct 2015 07:28:00 GMT"), []time.Duration{second}, ""},
		{"always", times(99, 502, ""), []time.Duration{second, 2 * second, 4 * second, 8 * second, 16 * second}, "502 Bad Gateway, 6 times in a row"},
		{"later", times(1, 429, "86400"), nil, "the server asks to come back in 24h0m0s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := hubtest.New(t, files())
			h.Environment(t)
			h.On(test.hook)
			c, waits, notes := client(t)
			_, err := c.Snapshot(t.Context(), ref)
			if (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("error %v, want %q", err, test.err)
			}
			if !slices.Equal(*waits, test.waits) {
				t.Errorf("waits %v, want %v", *waits, test.waits)
			}
			if len(*notes) != len(test.waits) {
				t.Errorf("waits are not told: %q", *notes)
			}
		})
	}
}

// TestContent: contents that are not those that are listed.
func TestContent(t *testing.T) {
	for _, test := range []struct {
		name string
		send func(w http.ResponseWriter, r *http.Request, b []byte)
		want string // "": the file is right in the end
	}{
		{"digest", func(w http.ResponseWriter, r *http.Request, b []byte) {
			b = bytes.Clone(b)
			b[len(b)/2] ^= 1
			w.Write(b)
		}, "sent 700000 bytes with digest"},
		{"shorter", func(w http.ResponseWriter, r *http.Request, b []byte) { w.Write(b[:2000]) }, "has 2000 bytes of it, the repository lists 700000"},
		{"longer", func(w http.ResponseWriter, r *http.Request, b []byte) {
			w.(http.Flusher).Flush() // no Content-Length
			w.Write(append(bytes.Clone(b), 0))
		}, "more bytes arrive than the 700000"},
		{"ends early", func(w http.ResponseWriter, r *http.Request, b []byte) { w.(http.Flusher).Flush() }, "after 0 of 700000 bytes, 6 times in a row"},
		{"other range", func(w http.ResponseWriter, r *http.Request, b []byte) {
			w.Header().Set("Content-Range", "bytes 5-699999/700000")
			w.WriteHeader(http.StatusPartialContent)
			w.Write(b[5:])
		}, `asked for bytes from 0, 127.0.0.1`},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := hubtest.New(t, files())
			h.Environment(t)
			h.On(func(w http.ResponseWriter, r *http.Request, path string) bool {
				if path != shard1 {
					return false
				}
				test.send(w, r, files()[shard1])
				return true
			})
			c, _, _ := client(t)
			dir, err := c.Snapshot(t.Context(), ref)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), shard1) {
				t.Fatalf("error %v, want %q of %s", err, test.want, shard1)
			}
			if _, err := os.Stat(filepath.Join(dir, shard1)); err == nil {
				t.Error("the file is there")
			}
			if _, err := os.Stat(filepath.Join(c.Cache, ref.folder(), "blobs", h.Digest(shard1))); err == nil {
				t.Error("the blob is there")
			}
		})
	}
}

// TestBegun: what lies in .incomplete is not what the hub has, or is too long; and a server that cannot begin in the middle.
func TestBegun(t *testing.T) {
	for _, test := range []struct {
		name   string
		begun  []byte
		ranges bool
	}{
		{"garbage", random(1000, 99), true},
		{"too long", random(800_000, 98), true},
		{"all", random(700_000, 97), true},
		{"no ranges", files()[shard1][:1000], false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := hubtest.New(t, files())
			h.Environment(t)
			h.On(func(_ http.ResponseWriter, r *http.Request, _ string) bool {
				if !test.ranges {
					r.Header.Del("Range")
				}
				return false
			})
			c, _, _ := client(t)
			told := &progress{}
			c.Progress = told
			path := filepath.Join(c.Cache, ref.folder(), "blobs", h.Digest(shard1)+".incomplete")
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, test.begun, 0o644); err != nil {
				t.Fatal(err)
			}
			check(t, fetched(t, c), files(), needed)
			var all int64
			for _, name := range needed {
				all += int64(len(files()[name]))
			}
			if want := all - int64(min(len(test.begun), 700_000)); told.sum != want {
				t.Errorf("the progress ends at %d bytes, not %d", told.sum, want)
			}
		})
	}
}

// TestFolder: files under their own names, those of the cache copied, those of the user left alone.
func TestFolder(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	c, _, _ := client(t)
	dir := filepath.Join(t.TempDir(), "tiny")
	if err := c.Folder(t.Context(), ref, dir, false); err != nil {
		t.Fatal(err)
	}
	check(t, dir, files(), needed)
	if info, err := os.Lstat(filepath.Join(dir, shard1)); err != nil || !info.Mode().IsRegular() {
		t.Errorf("%v, %v: not a file", info, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, ".cache/huggingface/download", shard1+".metadata"))
	if lines := strings.Split(string(b), "\n"); err != nil || len(lines) != 4 || lines[0] != hubtest.Commit || lines[1] != h.Digest(shard1) {
		t.Errorf("metadata %q, %v", b, err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".cache/huggingface/download/*.incomplete"))
	if len(left) > 0 {
		t.Errorf("left: %q", left)
	}

	h.Requests()
	again := func(force bool) error { return c.Folder(t.Context(), ref, dir, force) }
	if err := again(false); err != nil {
		t.Fatal(err)
	}
	if r := h.Requests(); len(r) != 1 {
		t.Errorf("a second run asks for %v", r)
	}
	other := append([]byte(nil), files()["config.json"]...)
	other[0] = '['
	if err := os.WriteFile(filepath.Join(dir, "config.json"), other, 0o644); err != nil {
		t.Fatal(err)
	}
	future := time.Now().Add(time.Hour) // after its metadata, whatever the file system's clock
	if err := os.Chtimes(filepath.Join(dir, "config.json"), future, future); err != nil {
		t.Fatal(err)
	}
	if err := again(false); err == nil || !strings.Contains(err.Error(), "config.json exists, and is another") {
		t.Errorf("error %v", err)
	}
	if err := again(true); err != nil {
		t.Fatal(err)
	}
	check(t, dir, files(), needed)

	fetched(t, c)
	h.Requests()
	dir = filepath.Join(t.TempDir(), "copy")
	if err := c.Folder(t.Context(), ref, dir, false); err != nil {
		t.Fatal(err)
	}
	check(t, dir, files(), needed)
	if r := h.Requests(); len(r) != 1 {
		t.Errorf("what the cache has is asked for: %v", r)
	}
}

func TestOffline(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	t.Setenv("HF_HUB_OFFLINE", "1")
	c, _, _ := client(t)
	if _, err := c.Snapshot(t.Context(), ref); err == nil || !strings.Contains(err.Error(), "is not in the cache") {
		t.Errorf("error %v", err)
	}
	t.Setenv("HF_HUB_OFFLINE", "")
	online, _, _ := client(t)
	want := fetched(t, online)
	h.Requests()
	if got := fetched(t, c); got != want {
		t.Errorf("the folder is %s, not %s", got, want)
	}
	if got, err := c.Snapshot(t.Context(), Ref{hubtest.Repo, hubtest.Commit}); got != want {
		t.Errorf("of the commit the folder is %q, %v", got, err)
	}
	if r := h.Requests(); len(r) > 0 {
		t.Errorf("it asks for %v", r)
	}
}

func TestProxy(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	t.Setenv("HF_ENDPOINT", "http://hub.invalid")
	proxied.Lock()
	proxied.to, proxied.urls = h.Config.Handler, nil
	proxied.Unlock()
	c, _, _ := client(t)
	check(t, fetched(t, c), files(), needed)
	proxied.Lock()
	defer proxied.Unlock()
	if want := "http://hub.invalid/api/models/acme/tiny/revision/main?blobs=true"; len(proxied.urls) == 0 || proxied.urls[0] != want {
		t.Errorf("through the proxy went %q, want first %s", proxied.urls, want)
	}
}

// TestLock: what another process is fetching is waited for, and not fetched again.
func TestLock(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	c, _, _ := client(t)
	path := filepath.Join(c.Cache, ".locks", ref.folder(), h.Digest(shard1)+".lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	other := flock.New(path)
	if ok, err := other.TryLock(); !ok || err != nil {
		t.Fatal(ok, err)
	}
	waiting := make(chan string, 1)
	c.Notify = func(s string) { waiting <- s }
	done := make(chan error, 1)
	go func() {
		_, err := c.Snapshot(t.Context(), ref)
		done <- err
	}()
	if s := <-waiting; !strings.Contains(s, shard1+": another process is fetching it") {
		t.Errorf("said %q", s)
	}
	blob := filepath.Join(c.Cache, ref.folder(), "blobs", h.Digest(shard1))
	if err := os.WriteFile(blob, files()[shard1], 0o644); err != nil {
		t.Fatal(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if n := h.Sent(shard1); n != 0 {
		t.Errorf("%d bytes were fetched of what the other process has fetched", n)
	}
}

func TestSelect(t *testing.T) {
	for _, test := range []struct {
		name, files, index string
		want               string // names, or an error
	}{
		{"single before shards", "config.json model.safetensors model.safetensors.index.json model-00001-of-00001.safetensors", "", "model.safetensors"},
		{"no index", "config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors pytorch_model.bin", "",
			"model-00001-of-00002.safetensors model-00002-of-00002.safetensors"},
		{"torch", "config.json pytorch_model.bin tf_model.h5 model.ckpt.index", "", "pytorch_model.bin"},
		{"torch shards", "config.json pytorch_model.bin.index.json p1.bin p2.bin p3.bin", `{"weight_map":{"a":"p2.bin","b":"p1.bin"}}`, "p1.bin p2.bin"},
		{"subfolder", "config.json model.safetensors.index.json w/a.safetensors", `{"weight_map":{"a":"w/a.safetensors"}}`, "w/a.safetensors"},
		{"adapter", "adapter_config.json adapter_model.safetensors adapter_model.bin", "", "adapter_model.safetensors"},
		{"gguf", "README.md a.gguf b.gguf", "", "error: no config.json: it holds 2 GGUF files"},
		{"maker", "config.json consolidated.safetensors params.json", "", "error: maker's own format"},
		{"none", "config.json", "", "error: no weights in the format of transformers"},
		{"index", "config.json model.safetensors.index.json", `{"weight_map":{"a":"x.safetensors"}}`, `error: places tensor "a" in "x.safetensors"`},
		{"empty index", "config.json model.safetensors.index.json", `{}`, `error: names no file`},
		{"broken index", "config.json model.safetensors.index.json", `[`, `error: model.safetensors.index.json: `},
	} {
		l := &Listing{Ref: ref}
		for _, name := range strings.Fields(test.files) {
			l.Files = append(l.Files, File{Path: name})
		}
		_, err := l.beside()
		var weights []File
		if err == nil {
			weights, err = l.weights([]byte(test.index))
		}
		var names []string
		for _, f := range weights {
			names = append(names, f.Path)
		}
		want, isError := strings.CutPrefix(test.want, "error: ")
		if isError != (err != nil) || isError && !strings.Contains(err.Error(), want) || !isError && strings.Join(names, " ") != want {
			t.Errorf("%s: %q, %v; want %s", test.name, names, err, test.want)
		}
	}
}

func TestParseRef(t *testing.T) {
	for s, want := range map[string]Ref{
		"hf:Qwen/Qwen3-8B":            {"Qwen/Qwen3-8B", "main"},
		"hf:Qwen/Qwen3-8B@v1.0":       {"Qwen/Qwen3-8B", "v1.0"},
		"hf:Qwen/Qwen3-8B@refs/pr/12": {"Qwen/Qwen3-8B", "refs/pr/12"},
		"hf:gpt2":                     {"gpt2", "main"},
	} {
		if got, err := ParseRef(s); got != want || err != nil {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"hf:", "hf:/x", "hf:a/b/c", "hf:../x", "hf:a/..", "hf:a/b--c", "hf:a/b@", "hf:a/b@../../x", "hf:a/b@/x", "hf:a/b@x@y", `hf:a/b@\x`,
		"hf:a b/c", "hf:https://huggingface.co/a/b", "hf:a/b?x"} {
		if got, err := ParseRef(s); err == nil {
			t.Errorf("%s is taken for %v", s, got)
		}
	}
}

// TestHostile: a hub's answers become names of files.
func TestHostile(t *testing.T) {
	sha := strings.Repeat("a", 40)
	for _, test := range []struct{ answer, want string }{
		{`{"sha":"../../x","siblings":[]}`, "says that its commit is"},
		{`{"sha":"` + sha + `","siblings":[{"rfilename":"../x","size":1,"blobId":"` + sha + `"}]}`, `lists a file "../x"`},
		{`{"sha":"` + sha + `","siblings":[{"rfilename":"/etc/x","size":1,"blobId":"` + sha + `"}]}`, `lists a file "/etc/x"`},
		{`{"sha":"` + sha + `","siblings":[{"rfilename":"a\\b","size":1,"blobId":"` + sha + `"}]}`, `lists a file`},
		{`{"sha":"` + sha + `","siblings":[{"rfilename":"x","size":-1,"blobId":"` + sha + `"}]}`, "x: the server says that it has -1 bytes"},
		{`{"sha":"` + sha + `","siblings":[{"rfilename":"x","size":1,"blobId":"../../y"}]}`, `x: the server gives "../../y" as its digest`},
		{`{"sha":"` + sha + `","siblings":[{"rfilename":"x","size":1}]}`, `x: the server gives "" as its digest`},
		{`<html>`, "the server's list of files"},
	} {
		if _, err := parseListing(ref, []byte(test.answer)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q", test.answer, err, test.want)
		}
	}
	valid := fmt.Sprintf(`{"sha":%q,"siblings":[{"rfilename":"d/x","size":1,"blobId":%q},{"rfilename":"y","size":9,"blobId":%q,"lfs":{"sha256":%q,"size":7}}]}`,
		sha, sha, sha, strings.Repeat("b", 64))
	l, err := parseListing(ref, []byte(valid))
	want := []File{{"d/x", 1, Digest(sha)}, {"y", 7, Digest(strings.Repeat("b", 64))}}
	if err != nil || !slices.Equal(l.Files, want) {
		t.Errorf("%v, %v; want %v", l, err, want)
	}
}

// TestRoom: files beyond the disk are refused before the first byte of them.
func TestRoom(t *testing.T) {
	h := hubtest.New(t, files())
	h.Environment(t)
	h.On(func(w http.ResponseWriter, r *http.Request, path string) bool {
		if path != "" {
			return false
		}
		blob, lfs := strings.Repeat("0", 40), strings.Repeat("1", 64)
		type m = map[string]any
		json.NewEncoder(w).Encode(m{"sha": hubtest.Commit, "siblings": []m{
			{"rfilename": "config.json", "size": len(files()["config.json"]), "blobId": h.Digest("config.json")},
			{"rfilename": singleFile, "size": 5, "blobId": blob, "lfs": m{"sha256": lfs, "size": int64(1) << 60}},
		}})
		return true
	})
	c, _, _ := client(t)
	if err := os.MkdirAll(c.Cache, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := c.Snapshot(t.Context(), ref)
	if err == nil || !strings.Contains(err.Error(), "its files need 1152921504606846976 bytes more") {
		t.Errorf("error %v", err)
	}
}
