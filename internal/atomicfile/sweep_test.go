//go:build linux || darwin

package atomicfile

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
)

// writerVariable makes the test binary write to the path that it holds until it is killed.
const writerVariable = "LLMQ_TEST_WRITER"

func TestMain(m *testing.M) {
	if path, ok := os.LookupEnv(writerVariable); ok {
		w, err := Create(path, 1<<20, Options{})
		if err != nil {
			os.Stdout.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Stdout.WriteString(w.Temp() + "\n")
		io.Copy(io.Discard, os.Stdin) // the test holds the other end; select{} would be a deadlock to the runtime, which ends the process
		runtime.KeepAlive(w)          // a collected file is closed, and its lock gone
	}
	os.Exit(m.Run())
}

// startWriter starts a process that writes to path, and returns it with its temporary file.
func startWriter(t *testing.T, path string) (kill func(), tmp string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerVariable+"="+path)
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	t.Cleanup(kill)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return kill, strings.TrimSpace(line)
}

// TestSweep: what a killed process has left is removed; a file whose writer lives stays, in whatever process that is.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	kill, dead := startWriter(t, filepath.Join(dir, "a"))
	_, alive := startWriter(t, filepath.Join(dir, "b"))
	own, err := Create(filepath.Join(dir, "c"), 10, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Abort()
	target := filepath.Join(t.TempDir(), "target")
	put(t, target, "another's")
	for _, name := range []string{"model.gguf", ".llmq-states", "llmq-A.tmp", ".llmq-cache"} {
		put(t, filepath.Join(dir, name), "kept")
	}
	if err := errors.Join(os.Symlink(target, filepath.Join(dir, ".llmq-LINK.tmp")), os.Mkdir(filepath.Join(dir, ".llmq-DIR.tmp"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if gone := Sweep(dir); len(gone) != 0 {
		t.Errorf("removed %v while all writers live", gone)
	}
	kill()
	if _, err := os.Stat(dead); err != nil {
		t.Fatalf("a killed writer leaves nothing: %v", err)
	}
	if gone, want := Sweep(dir), []Leftover{{dead, 1 << 20}}; !slices.Equal(gone, want) {
		t.Errorf("removed %v, want %v", gone, want)
	}
	var left []string
	for name := range contents(t, dir) {
		left = append(left, name)
	}
	slices.Sort(left)
	want := []string{".llmq-DIR.tmp", ".llmq-LINK.tmp", ".llmq-cache", ".llmq-states", filepath.Base(alive), filepath.Base(own.Temp()),
		"llmq-A.tmp", "model.gguf"}
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left %q, want %q", left, want)
	}
	if err := own.Commit(); err != nil {
		t.Errorf("the sweep has disturbed a writer: %v", err)
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "another's" {
		t.Errorf("what a link leads to is %q, %v", b, err)
	}
}

// TestSweepDuringCreate lets sweeps and writers meet at every moment: no writer may lose its file.
func TestSweepDuringCreate(t *testing.T) {
	dir := t.TempDir()
	stop := make(chan struct{})
	var sweeps sync.WaitGroup
	sweeps.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			entries, _ := os.ReadDir(dir)
			for _, e := range entries { // as another process would: without looking at what this one writes
				removeAbandoned(filepath.Join(dir, e.Name()))
			}
		}
	})
	for range 300 {
		f, err := createTemp(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(f.Name()); err != nil {
			t.Fatalf("a claimed file is gone: %v", err)
		}
		os.Remove(f.Name())
		f.Close()
		forget(f.Name())
	}
	close(stop)
	sweeps.Wait()
}

// TestSweepNothing: folders that are absent or empty have nothing to remove.
func TestSweepNothing(t *testing.T) {
	dir := t.TempDir()
	if gone := append(Sweep(dir), Sweep(filepath.Join(dir, "absent"))...); len(gone) != 0 {
		t.Errorf("removed %v", gone)
	}
}

// TestSweepFolder: the folder of a killed process goes, that of one that lives stays.
func TestSweepFolder(t *testing.T) {
	dir := t.TempDir()
	w, err := CreateFolder(filepath.Join(dir, "out"), 1, marked, Options{})
	if err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(w.Dir(), "shard"))
	if gone := Sweep(dir); len(gone) != 0 {
		t.Fatalf("%v of a living process swept", gone)
	}
	forget(w.tmp) // as if another process wrote it
	if gone := Sweep(dir); len(gone) != 0 {
		t.Fatalf("%v swept, which is locked", gone)
	}
	w.lock.Close() // as if that were killed
	if gone := Sweep(dir); len(gone) != 1 || gone[0].Bytes != 1 || gone[0].Path != w.tmp {
		t.Errorf("swept %v", gone)
	}
	if got := files(t, dir); got != "" {
		t.Errorf("left: %q", got)
	}
}
