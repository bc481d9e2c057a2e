//go:build linux || darwin

package gguf_test

import (
	"errors"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/llmq/llmq/formats/gguf"
)

// TestNoSpaceInTheMiddle has the system refuse a write halfway, as a full disk does: every later call repeats the
// error, and nothing is left.
func TestNoSpaceInTheMiddle(t *testing.T) {
	infos, data := sample()
	// The limit holds for every file of the process, the log in which package testing has what a test opens among them: larger than that.
	infos[0].Shape = []int{1 << 12, 256}
	data[infos[0].Name] = make([]byte, infos[0].Bytes())
	dir := t.TempDir()
	w := create(t, filepath.Join(dir, "x.gguf"), nil, infos, gguf.Options{})
	signal.Ignore(syscall.SIGXFSZ) // it would end the process; ignored, the write returns EFBIG
	defer signal.Reset(syscall.SIGXFSZ)
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := syscall.Rlimit{Cur: uint64(w.Plan().Offset(3)), Max: old.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
			t.Error(err)
		}
	}()
	for i, info := range infos {
		err := w.WriteTensor(info.Name, data[info.Name])
		if i < 3 && err != nil || i >= 3 && !errors.Is(err, syscall.EFBIG) {
			t.Errorf("tensor %d: %v", i, err)
		}
	}
	if err := w.Close(); !errors.Is(err, syscall.EFBIG) {
		t.Errorf("Close: %v", err)
	}
	expectFiles(t, dir)
}
