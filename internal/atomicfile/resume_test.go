package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestResume: an output that is given up several times has in the end what all have written, wherever it was made, and nothing is left there.
func TestResume(t *testing.T) {
	folders := map[string]string{"here": "", "elsewhere": t.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "llmq-test-"); err == nil {
		t.Cleanup(func() { os.RemoveAll(shm) })
		if !sameDisk(shm, t.TempDir()) {
			folders["another disk"] = shm
		}
	}
	for name, folder := range folders {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if folder == "" {
				folder = dir
			}
			path, partial := filepath.Join(dir, "out"), filepath.Join(folder, "out.partial")
			put(t, partial, "123456789 of something longer")
			resume := func() *File {
				t.Helper()
				w, err := Resume(path, partial, 6, Options{})
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			for i, s := range []string{"ab", "cd"} {
				w := resume()
				if _, err := w.WriteAt([]byte(s), int64(2*i)); err != nil {
					t.Fatal(err)
				}
				if err := w.Sync(); err != nil {
					t.Fatal(err)
				}
				w.Abort()
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the file is there already: %v", err)
				}
			}
			w := resume()
			b := make([]byte, 6)
			if _, err := w.ReadAt(b, 0); err != nil || string(b) != "abcd56" {
				t.Errorf("what was written reads %q, %v", b, err)
			}
			put(t, path, "appeared")
			if err := w.Commit(); !errors.Is(err, fs.ErrExist) {
				t.Errorf("error %v", err)
			}
			if _, err := Resume(path, partial, 6, Options{}); !errors.Is(err, fs.ErrExist) {
				t.Errorf("error %v", err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if err := resume().Commit(); err != nil {
				t.Fatal(err)
			}
			expect(t, dir, "out", "abcd56")
			if left := contents(t, folder)["out.partial"]; left != "" {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// TestResumeRefused: a partial file that cannot be one, or has no room, is no output.
func TestResumeRefused(t *testing.T) {
	dir := t.TempDir()
	for want, partial := range map[string]string{
		"directory": dir,
		"no such":   filepath.Join(dir, "absent", "partial"),
	} {
		if _, err := Resume(filepath.Join(dir, "out"), partial, 1, Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Resume(filepath.Join(dir, "out"), filepath.Join(dir, "partial"), 1<<62, Options{}); err == nil {
		t.Error("there is room for 2^62 bytes")
	}
}
