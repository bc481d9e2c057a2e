package mmap

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// residentKB is how much of the mapped files is in this process's memory.
func residentKB(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(b), "RssFile:")
	if _, err := fmt.Sscan(after, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestReleaseFreesMemory(t *testing.T) {
	const size = 32 << 20
	m, err := Open(write(t, make([]byte, size)))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	sum := 0
	for i := 0; i < size; i += os.Getpagesize() {
		sum += int(m.Data[i])
	}
	before := residentKB(t)
	m.Release(m.Data)
	if freed := before - residentKB(t); sum != 0 || freed < size/1024/2 {
		t.Errorf("releasing %d kB freed %d kB of %d", size/1024, freed, before)
	}
}

// TestPipe would hang if the pipe were opened.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("pipe: %v", err)
	}
}
