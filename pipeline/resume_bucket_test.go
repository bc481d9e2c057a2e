package pipeline

import (
	"crypto/sha256"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/s3test"
	"github.com/llmq/llmq/store"
)

// TestResumeBucket: a bucket that refuses every value from the n-th on ends a run, for each n; the same run goes on there, and writes
// the file that it writes without.
func TestResumeBucket(t *testing.T) {
	j := jobs(t)["gptq"]
	j.r.Method = WithGPTQ(GPTQ, gptq.Options{NoRefine: true}) // quick
	p, err := NewPlan(j.src, j.r)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := WorkParts(j.src, p, Budget{}, j.opt)
	if err != nil {
		t.Fatal(err)
	}
	s := s3test.Start(t)
	var puts, most atomic.Int64
	s.Trouble(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, ".value") || puts.Add(1) <= most.Load() {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	run := func(work string, allowed int64) (file [sha256.Size]byte, layers int, err error) {
		puts.Store(0)
		most.Store(allowed)
		opt := j.opt
		c := &counter{}
		opt.Progress = c
		if work != "" {
			f, err := store.Open(t.Context(), work, parts, func(message string) { t.Errorf("waits: %s", message) })
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			opt.Work = f
		}
		path := filepath.Join(t.TempDir(), "out.gguf")
		if _, err = Run(t.Context(), j.src, p, path, opt); err != nil {
			return file, c.layers, err
		}
		b, err := os.ReadFile(path)
		return sha256.Sum256(b), c.layers, err
	}
	want, layers, err := run("", 0)
	if err != nil {
		t.Fatal(err)
	}
	const all = 1000
	for n := int64(0); ; n++ {
		work := "s3://" + s3test.Bucket + "/" + strings.Repeat("x", int(n)+1)
		_, first, err := run(work, n)
		if err == nil {
			if n < 3 {
				t.Errorf("only %d values are kept", n)
			}
			break
		}
		if !strings.Contains(err.Error(), "refuses access") {
			t.Fatalf("after %d values: %v", n, err)
		}
		got, second, err := run(work, all)
		if err != nil || got != want || first+second > layers+1 {
			t.Errorf("after %d values: %v, same file %v, %d layers and %d of %d", n, err, got == want, first, second, layers)
		}
	}
	for _, key := range s.Keys(t) {
		if strings.HasSuffix(key, ".value") {
			t.Errorf("%s is left", key)
		}
	}
}
