package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/llmq/llmq/internal/hubtest"
)

// diskPeak looks at what a folder takes until stop is called, which returns the most.
func diskPeak(folder string) (stop func() int64) {
	done := make(chan struct{})
	var peak int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			var bytes int64
			filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.Type().IsRegular() {
					var st syscall.Stat_t
					if syscall.Lstat(path, &st) == nil {
						bytes += 512 * st.Blocks
					}
				}
				return nil // what has gone meanwhile is not there
			})
			peak = max(peak, bytes)
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	return func() int64 {
		close(done)
		wg.Wait()
		return peak
	}
}

// arrived lists the bytes [lo,hi) of each file of weights that have come to a folder of --low-disk, by the files' names.
func arrived(t *testing.T, folder string) map[string][][2]int64 {
	t.Helper()
	journals, err := filepath.Glob(filepath.Join(folder, "*/snapshots/*/*.have"))
	if err != nil || len(journals) == 0 {
		t.Fatalf("%s holds %q, %v", folder, journals, err)
	}
	all := map[string][][2]int64{}
	for _, journal := range journals {
		b, err := os.ReadFile(journal)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(journal), ".have")
		for line := range strings.Lines(string(b)) {
			var a [2]int64
			if n, _ := fmt.Sscanf(line, "have %d %d\n", &a[0], &a[1]); n == 2 {
				all[name] = append(all[name], a)
			}
		}
	}
	return all
}

// TestLowDiskWork: a run that fetches weights when they are due, and is killed twice, asks for nothing that had arrived, writes the file of an
// undisturbed run, and takes no more of the disk than --dry-run tells.
func TestLowDiskWork(t *testing.T) {
	h := hubtest.OfFolder(t, folder(t, "llama"))
	h.Environment(t)
	whole, out := filepath.Join(t.TempDir(), "whole.gguf"), t.TempDir()
	options := append([]string{"--output-hessian", "off", "--refine", "20", "--type", "q4_0", "--embedding-type", "q8_0", "--output-type", "q8_0"}, calibrate...)
	low := slices.Concat([]string{"quantize", onHub, "-o", filepath.Join(out, "low.gguf"), "--low-disk", "--work", filepath.Join(out, "work")}, options)
	plan := mustJSON(t, planKeys, append(low, "--dry-run")...)
	must(t, slices.Concat([]string{"quantize", onHub, "-o", whole}, options)...)
	if err := os.RemoveAll(filepath.Join(os.Getenv("HF_HOME"), "hub")); err != nil { // whole's
		t.Fatal(err)
	}
	stop := diskPeak(out)
	for _, at := range []string{"quantize: layer 1/2", "quantize: layer 2/2", "quantize: head", ""} {
		h.Requests()
		before := map[string][][2]int64{}
		if at != "quantize: layer 1/2" {
			before = arrived(t, filepath.Join(out, "work.checkpoint"))
		}
		if at != "" {
			runUntil(t, at, syscall.SIGKILL, low...)
		} else {
			r := must(t, low...)
			if strings.Contains(r.stderr, "fetched again") {
				t.Errorf("low-disk says %q", r.stderr)
			}
		}
		for _, r := range h.Requests() {
			var lo, hi int64
			if n, _ := fmt.Sscanf(r.Range, "bytes=%d-%d", &lo, &hi); n < 2 {
				continue
			}
			for _, a := range before[filepath.Base(r.Path)] {
				if lo < a[1] && a[0] <= hi {
					t.Errorf("before %q: %s is asked for bytes %s, and had sent %v", at, r.Path, r.Range, a)
				}
			}
		}
	}
	peak := stop()
	sameFiles(t, filepath.Join(out, "low.gguf"), whole)
	if left := listing(t, out); len(left) != 5 { // the folder, the file, work and its two
		t.Errorf("left: %v", left)
	}
	const small = 128 << 10 // what is beside the weights, in blocks, and digests
	told := int64(plan["disk_bytes"].(float64) + plan["work_bytes"].(float64) + plan["checkpoint_bytes"].(float64))
	t.Logf("%d bytes at most; --dry-run tells %d, %v of output, %v of work, %v of the checkpoint", peak, told, plan["disk_bytes"], plan["work_bytes"], plan["checkpoint_bytes"])
	if peak > told+small || peak < told/2 {
		t.Errorf("%d bytes are taken at most, --dry-run tells %d", peak, told)
	}
}
