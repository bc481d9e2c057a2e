package mmap

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestRelease gives up every range of a few pages: what is read afterwards is what was there.
func TestRelease(t *testing.T) {
	page := os.Getpagesize()
	data := make([]byte, 3*page+100)
	for i := range data {
		data[i] = byte(i * 7)
	}
	m, err := Open(write(t, data))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	cuts := []int{0, 1, page - 1, page, page + 1, 2 * page, 3*page + 99, len(data)}
	for _, lo := range cuts {
		for _, hi := range cuts {
			if lo <= hi {
				m.Release(m.Data[lo:hi])
			}
			if !bytes.Equal(m.Data, data) {
				t.Fatalf("content differs after releasing [%d %d]", lo, hi)
			}
		}
	}
	// Memory that is not the file's must be left alone.
	other := bytes.Repeat([]byte{1}, 4*page)
	m.Release(other)
	if bytes.IndexByte(other, 0) >= 0 {
		t.Error("released memory that is not part of the file")
	}
}

func TestOpen(t *testing.T) {
	m, err := Open(write(t, nil))
	if err != nil || len(m.Data) != 0 {
		t.Fatalf("empty file: %v", err)
	}
	m.Release(m.Data)
	for range 2 {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	m, err = Open(write(t, []byte("abc")))
	if err != nil || string(m.Data) != "abc" {
		t.Fatalf("%q, %v", m.Data, err)
	}
	for range 2 {
		if err := m.Close(); err != nil || m.Data != nil {
			t.Error(err, m.Data)
		}
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("folder: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
}
