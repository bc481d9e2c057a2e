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

// TestResumeRoom: the room is taken as it is written to.
func TestResumeRoom(t *testing.T) {
	const size = 64 << 20
	dir := t.TempDir()
	partial := filepath.Join(dir, "partial")
	w, err := Resume(filepath.Join(dir, "out"), partial, size, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("end"), size-3); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	info, err := os.Stat(partial)
	if err != nil || info.Size() != size {
		t.Fatalf("%v, %v", info, err)
	}
	if taken := Allocated(info); taken > 1<<20 && freeKnown(dir) {
		t.Errorf("%d bytes are taken for 3", taken)
	}
}

func freeKnown(dir string) bool {
	_, ok := freeBytes(dir)
	return ok
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

// TestResumeTakenBack: when one of several files cannot take its place, what was made stays to go on with, on one disk and on two.
func TestResumeTakenBack(t *testing.T) {
	folders := map[string]string{"one disk": t.TempDir()}
	if shm, err := os.MkdirTemp("/dev/shm", "llmq-test-*"); err == nil {
		t.Cleanup(func() { os.RemoveAll(shm) })
		folders["two disks"] = shm
	}
	for name, folder := range folders {
		work := t.TempDir()
		var files []*File
		for _, part := range []string{"1", "2", "3"} {
			w, err := Resume(filepath.Join(folder, part), filepath.Join(work, part), 3, Options{Overwrite: true})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.WriteAt([]byte("of"+part), 0); err != nil {
				t.Fatal(err)
			}
			files = append(files, w)
		}
		old := filepath.Join(folder, "1")
		if err := os.WriteFile(old, []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		lost := filepath.Join(work, "1")
		if renames(work, folder) { // the first takes its place last
			if err := os.Remove(lost); err != nil {
				t.Fatal(err)
			}
		} else { // nothing has been touched when a copy fails
			lost = filepath.Join(work, "3")
			if err := os.Remove(lost); err != nil {
				t.Fatal(err)
			}
		}
		if err := Commit(files...); err == nil {
			t.Fatalf("%s: a file that is not there has taken its place", name)
		}
		for _, part := range []string{"1", "2", "3"} {
			if b, err := os.ReadFile(filepath.Join(work, part)); filepath.Join(work, part) != lost && string(b) != "of"+part {
				t.Errorf("%s: what was made of %s is lost: %q, %v", name, part, b, err)
			}
		}
		left, err := os.ReadDir(folder)
		if err != nil {
			t.Fatal(err)
		}
		if renames(work, folder) {
			if len(left) != 0 {
				t.Errorf("%s: left: %v", name, left)
			}
			continue
		}
		if b, err := os.ReadFile(old); len(left) != 1 || string(b) != "old" {
			t.Errorf("%s: what was there is %q, %v; left: %v", name, b, err, left)
		}
	}
}
