package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
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
	if err != nil {
		t.Fatal(err)
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

// lowDisk is a run that fetches weights when they are due.
type lowDisk struct {
	hub  *hubtest.Hub
	out  string
	args []string
	want string // the file of an undisturbed run
	told int64  // what --dry-run says of the disk
}

func newLowDisk(t *testing.T) *lowDisk {
	h := hubtest.OfFolder(t, folder(t, "llama"))
	h.Environment(t)
	options := append([]string{"--output-hessian", "off", "--refine", "20", "--type", "q4_0", "--embedding-type", "q8_0", "--output-type", "q8_0"}, calibrate...)
	l := &lowDisk{hub: h, out: t.TempDir(), want: filepath.Join(t.TempDir(), "whole.gguf")}
	l.args = slices.Concat([]string{"quantize", onHub, "-o", filepath.Join(l.out, "low.gguf"), "--low-disk", "--work", filepath.Join(l.out, "work")}, options)
	plan := mustJSON(t, planKeys, append(l.args, "--dry-run")...)
	l.told = int64(plan["disk_bytes"].(float64) + plan["work_bytes"].(float64) + plan["checkpoint_bytes"].(float64))
	must(t, slices.Concat([]string{"quantize", onHub, "-o", l.want}, options)...)
	if err := os.RemoveAll(filepath.Join(os.Getenv("HF_HOME"), "hub")); err != nil { // what that has fetched
		t.Fatal(err)
	}
	return l
}

// check has the run killed, some times, until kill says that it has come to its end; nothing is asked for that had arrived, it writes the file
// of an undisturbed run, and takes no more of the disk than --dry-run tells.
func (l *lowDisk) check(t *testing.T, kill func(n int) (done bool)) {
	t.Helper()
	stop := diskPeak(l.out)
	for n, done := 0, false; !done; n++ {
		l.hub.Requests()
		before := arrived(t, filepath.Join(l.out, "work.checkpoint"))
		done = kill(n)
		for _, r := range l.hub.Requests() {
			var lo, hi int64
			if n, _ := fmt.Sscanf(r.Range, "bytes=%d-%d", &lo, &hi); n < 2 {
				continue
			}
			for _, a := range before[filepath.Base(r.Path)] {
				if lo < a[1] && a[0] <= hi {
					t.Errorf("start %d: %s is asked for bytes %s, and had sent %v", n, r.Path, r.Range, a)
				}
			}
		}
	}
	peak := stop()
	sameFiles(t, filepath.Join(l.out, "low.gguf"), l.want)
	if left := listing(t, l.out); len(left) != 5 { // the folder, the file, work and its two
		t.Errorf("left: %v", left)
	}
	const small = 160 << 10 // what is beside the weights, in blocks, and digests
	if peak > l.told+small || peak < l.told-l.told/8 {
		t.Errorf("%d bytes are taken at most, --dry-run tells %d", peak, l.told)
	}
}

// TestLowDiskWork kills a run in each of its layers, and in the head.
func TestLowDiskWork(t *testing.T) {
	l := newLowDisk(t)
	places := []string{"quantize: layer 1/2", "quantize: layer 2/2", "quantize: head"}
	l.check(t, func(n int) bool {
		if n < len(places) {
			runUntil(t, places[n], syscall.SIGKILL, l.args...)
			return false
		}
		if r := must(t, l.args...); strings.Contains(r.stderr, "fetched again") {
			t.Errorf("low-disk says %q", r.stderr)
		}
		return true
	})
}

// TestLowDiskKilled kills runs at any time.
func TestLowDiskKilled(t *testing.T) {
	l := newLowDisk(t)
	rng := rand.New(rand.NewPCG(1, 2))
	const runs, kills = 12, 6
	after := func(n int) <-chan time.Time {
		if n == kills {
			return nil
		}
		return time.After(time.Duration(rng.Int64N(int64(800 * time.Millisecond))))
	}
	for range runs {
		l.check(t, func(n int) bool {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), argsVariable+"="+strings.Join(l.args, "\n"))
			var said strings.Builder
			cmd.Stderr = &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			over := make(chan error, 1)
			go func() { over <- cmd.Wait() }()
			select {
			case err := <-over:
				if strings.Contains(said.String(), "exists") { // the last one was killed when its file had its name
					work, file := filepath.Join(l.out, "work"), filepath.Join(l.out, "low.gguf")
					sameFiles(t, file, l.want)
					if err := errors.Join(os.RemoveAll(work), os.RemoveAll(work+".checkpoint"), os.Remove(file)); err != nil { // a file to be replaced would be on the meter
						t.Fatal(err)
					}
					must(t, l.args...)
					l.hub.Requests()
				} else if err != nil {
					t.Fatalf("%v, %s", err, &said)
				}
				return true
			case <-after(n):
			}
			cmd.Process.Kill()
			return <-over == nil
		})
		if t.Failed() {
			return
		}
		if err := errors.Join(os.Remove(filepath.Join(l.out, "low.gguf")), os.RemoveAll(filepath.Join(l.out, "work"))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLowDiskDamaged: a download that is not what the hub lists ends the run, be it that nobody can tell before its digest or that its weights are
// no numbers; nothing of it is kept, and the same command makes the file.
func TestLowDiskDamaged(t *testing.T) {
	l := newLowDisk(t)
	const shard = "model-00002-of-00002.safetensors"
	good, err := os.ReadFile(filepath.Join(folder(t, "llama"), shard))
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte){
		"one bit": func(b []byte) { b[len(b)*3/4] ^= 1 },
		"NaN":     func(b []byte) { copy(b[len(b)/2:], strings.Repeat("\xff", 4096)) },
	} {
		bad := slices.Clone(good)
		damage(bad)
		l.hub.On(func(w http.ResponseWriter, r *http.Request, path string) bool {
			content := good // what is listed
			if r.Host == strings.TrimPrefix(l.hub.Storage.URL, "http://") {
				content = bad
			}
			l.hub.Change(hubtest.Commit, shard, content)
			return false
		})
		r := llmq(t, l.args...)
		if r.code == exitOK || !strings.Contains(r.stderr, shard+": what has come has digest") {
			t.Errorf("%s: exit %d\n%s", name, r.code, r.stderr)
		}
		l.hub.On(nil)
		l.hub.Change(hubtest.Commit, shard, good)
		if _, err := os.Stat(filepath.Join(l.out, "low.gguf")); err == nil {
			t.Fatalf("%s: there is a file", name)
		}
		must(t, l.args...)
		sameFiles(t, filepath.Join(l.out, "low.gguf"), l.want)
		if err := os.Remove(filepath.Join(l.out, "low.gguf")); err != nil {
			t.Fatal(err)
		}
	}
}
