//go:build linux || darwin

package atomicfile

import (
	"bytes"
	"errors"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// limitFileSize makes the system refuse to write past byte n of any file until the test ends, as a full disk would.
func limitFileSize(t *testing.T, n uint64) {
	t.Helper()
	signal.Ignore(syscall.SIGXFSZ) // it would end the process; ignored, the write returns EFBIG
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
		signal.Reset(syscall.SIGXFSZ)
	})
}

// TestNoSpaceInTheMiddle has a write fail halfway.
func TestNoSpaceInTheMiddle(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "out"), 1<<20, Options{})
	if err != nil {
		t.Fatal(err)
	}
	limitFileSize(t, 1<<19)
	_, err = w.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 0)
	want := filepath.Join(dir, "out") + ": writing 1048576 bytes at 0: "
	if !errors.Is(err, syscall.EFBIG) || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	if got := contents(t, dir); len(got) != 1 {
		t.Errorf("the folder holds %d files while writing", len(got))
	}
	w.Abort()
	expect(t, dir)
}

// TestTooLargeForTheFileSystem has the size refused before anything is written.
func TestTooLargeForTheFileSystem(t *testing.T) {
	dir := t.TempDir()
	limitFileSize(t, 1<<19)
	if _, err := Create(filepath.Join(dir, "out"), 1<<20, Options{}); !errors.Is(err, syscall.EFBIG) ||
		!strings.Contains(err.Error(), "cannot make a file of 1048576 bytes") {
		t.Errorf("got %v", err)
	}
	expect(t, dir)
}
