package store

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiskFull fills a small file system: a value that does not fit fails by that name and leaves what is there as it was.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("llmq", dir, "tmpfs", 0, "size=12m"); err != nil {
		t.Skipf("no small file system: %v", err) // it takes root
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	d := openDir(t, filepath.Join(dir, "work"), parts)
	defer d.Close()
	content := bytes.Repeat([]byte("x"), 5<<20)
	put(t, d, "a", content)
	fill := func() error {
		w, err := d.Create("b")
		if err != nil {
			return err
		}
		defer w.Abort()
		for range 10 {
			if _, err := w.Write(content[:1<<20]); err != nil {
				return err
			}
		}
		return w.Commit()
	}
	if err := fill(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("got %v", err)
	}
	if got, err := get(d, "a"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("what was there: %d bytes, %v", len(got), err)
	}
	if err := d.Delete("a"); err != nil {
		t.Fatal(err)
	}
	if err := fill(); err != nil {
		t.Errorf("with room again: %v", err)
	}
}
