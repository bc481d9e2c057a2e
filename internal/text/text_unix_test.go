//go:build linux || darwin

package text

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestSpecialFiles: a pipe is read to its end, if that is not too far; a device is not opened.
func TestSpecialFiles(t *testing.T) {
	defer func(n int64) { maxTextBytes = n }(maxTextBytes)
	maxTextBytes = 1000
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func(content string) (string, error) {
		go func() {
			if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
				io.WriteString(f, content) // fails when the reader has had enough
				f.Close()
			}
		}()
		return ReadUTF8(path)
	}
	if got, err := read("a text"); err != nil || got != "a text" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := read(strings.Repeat("x", 1001)); err == nil || !strings.Contains(err.Error(), "pipe: more than 1000 bytes") {
		t.Errorf("%v", err)
	}
	long := filepath.Join(t.TempDir(), "long")
	if err := os.WriteFile(long, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(long, 1<<40); err != nil {
		t.Skipf("no file of 1 TiB, nearly all of it a hole: %v", err)
	}
	for _, read := range []func() error{
		func() error { _, err := ReadUTF8(long); return err },
		func() error { _, err := ReadFile(long, 1000); return err },
	} {
		if err := read(); err == nil || !strings.Contains(err.Error(), "long: more than 1000 bytes") {
			t.Errorf("%v", err)
		}
	}
	if _, err := ReadFile(path, 1000); err == nil || !strings.Contains(err.Error(), "pipe: not a regular file") {
		t.Errorf("%v", err)
	}
	if _, err := ReadUTF8(t.TempDir()); err == nil || !strings.Contains(err.Error(), "is a folder, not a text") {
		t.Errorf("%v", err)
	}
	device := filepath.Join(t.TempDir(), "device")
	if err := syscall.Mknod(device, syscall.S_IFCHR|0o600, 240<<8|77); err != nil {
		t.Skipf("no device node: %v", err)
	}
	if _, err := ReadUTF8(device); err == nil || !strings.Contains(err.Error(), "device: neither a regular file nor a pipe") {
		t.Errorf("%v", err)
	}
}
