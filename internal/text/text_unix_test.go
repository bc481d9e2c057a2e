//go:build linux || darwin

package text

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// TestPipes: what a shell has made for <(command) is read to its end, if that is not too far.
func TestPipes(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("no /proc/self/fd")
	}
	defer func(n int64) { maxTextBytes = n }(maxTextBytes)
	maxTextBytes = 1000
	read := func(content string) (string, error) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		io.WriteString(w, content) // less than what a pipe holds
		w.Close()
		return ReadUTF8(fmt.Sprintf("/proc/self/fd/%d", r.Fd()))
	}
	if got, err := read("a text"); err != nil || got != "a text" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := read(strings.Repeat("x", 1001)); err == nil || !strings.Contains(err.Error(), "more than 1000 bytes") {
		t.Errorf("%v", err)
	}
}

// TestSpecialFiles: a file without end is not read, neither a pipe nor a device is opened.
func TestSpecialFiles(t *testing.T) {
	defer func(n int64) { maxTextBytes = n }(maxTextBytes)
	maxTextBytes = 1000
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, link} {
		if _, err := ReadUTF8(name); err == nil || err.Error() != name+": not a regular file" {
			t.Errorf("%v", err)
		}
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
	if _, err := ReadUTF8(device); err == nil || !strings.Contains(err.Error(), "device: not a regular file") {
		t.Errorf("%v", err)
	}
}
