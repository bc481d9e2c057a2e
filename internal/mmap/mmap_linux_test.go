package mmap

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
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
	for name, release := range map[string]func([]byte){"Release": m.Release, "Rest": m.Rest} {
		sum := 0
		for i := 0; i < size; i += os.Getpagesize() {
			sum += int(m.Data[i])
		}
		before := residentKB(t)
		release(m.Data)
		if freed := before - residentKB(t); sum != 0 || freed < size/1024/2 {
			t.Errorf("%s of %d kB freed %d kB of %d", name, size/1024, freed, before)
		}
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

// TestReadAhead evicts a file and waits for its pages to come back without touching them.
func TestReadAhead(t *testing.T) {
	const size = 4 << 20
	path := write(t, make([]byte, size))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, size, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	m, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	resident := make([]byte, size/os.Getpagesize())
	count := func() (n int) {
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&m.Data[0])), size, uintptr(unsafe.Pointer(&resident[0])))
		if errno != 0 {
			t.Fatal(errno)
		}
		for _, r := range resident {
			n += int(r & 1)
		}
		return n
	}
	t.Logf("%d of %d pages resident at first", count(), len(resident))
	m.ReadAhead(m.Data[100 : size-100])
	for range 1000 {
		if count() == len(resident) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d of %d pages are resident", count(), len(resident))
}
