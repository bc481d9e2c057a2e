package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

const testMark = "config.json"

// marked says whether a folder has testMark.
func marked(dir string) error {
	_, err := os.Stat(filepath.Join(dir, testMark))
	return err
}

// files are the names in a folder, hidden ones too.
func files(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestFolder: a folder appears when it is committed, with all its files, in the place of nothing, of an empty folder, or of one that
// may be replaced; and nothing is left of one that is given up.
func TestFolder(t *testing.T) {
	for _, before := range []string{"nothing", "empty", "old", "link"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "out")
		opt := Options{}
		switch before {
		case "empty":
			if err := os.Mkdir(path, 0o755); err != nil {
				t.Fatal(err)
			}
		case "old", "link":
			opt.Overwrite = true
			real := path
			if before == "link" {
				real = filepath.Join(dir, "real")
				if err := os.Symlink("real", path); err != nil {
					t.Skip(err)
				}
			}
			if err := os.Mkdir(real, 0o755); err != nil {
				t.Fatal(err)
			}
			touch(t, filepath.Join(real, testMark))
			touch(t, filepath.Join(real, "old"))
		}
		was := files(t, dir)
		w, err := CreateFolder(path, 1, marked, opt)
		if err != nil {
			t.Fatalf("%s: %v", before, err)
		}
		touch(t, filepath.Join(w.Dir(), "new"))
		w.Abort()
		w.Abort()
		if got := files(t, dir); got != was {
			t.Errorf("%s: %q after Abort, %q before", before, got, was)
		}
		if w, err = CreateFolder(path, 1, marked, opt); err != nil {
			t.Fatalf("%s: %v", before, err)
		}
		touch(t, filepath.Join(w.Dir(), "new"))
		if _, err := os.Stat(filepath.Join(path, "new")); err == nil {
			t.Errorf("%s: there before Commit", before)
		}
		if err := w.Commit(); err != nil {
			t.Fatalf("%s: %v", before, err)
		}
		w.Abort()
		if got := files(t, path); got != "new" {
			t.Errorf("%s: the folder has %q", before, got)
		}
		if got := files(t, dir); got != "out" && got != "out real" {
			t.Errorf("%s: %q beside it", before, got)
		}
		if err := w.Commit(); err == nil {
			t.Errorf("%s: committed twice", before)
		}
	}
}

// TestFolderRefused: a folder with other things in it stays, whatever is asked for.
func TestFolderRefused(t *testing.T) {
	dir := t.TempDir()
	full, file, gone := filepath.Join(dir, "full"), filepath.Join(dir, "file"), filepath.Join(dir, "gone", "out")
	if err := os.Mkdir(full, 0o755); err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(full, "letters"))
	touch(t, file)
	if _, err := CreateFolder(full, 1, marked, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a folder with files: %v", err)
	}
	if _, err := CreateFolder(full, 1, marked, Options{Overwrite: true}); err == nil || !strings.Contains(err.Error(), "it is not replaced") {
		t.Errorf("a folder of another kind: %v", err)
	}
	for _, path := range []string{file, gone} {
		if _, err := CreateFolder(path, 1, marked, Options{Overwrite: true}); err == nil {
			t.Errorf("%s: created", path)
		}
	}
	// What appears meanwhile stays.
	out := filepath.Join(dir, "out")
	w, err := CreateFolder(out, 1, marked, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(out, "mine"))
	if err := w.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Commit over what appeared: %v", err)
	}
	if got := files(t, dir) + " " + files(t, out) + " " + files(t, full); got != "file full out mine letters" {
		t.Errorf("left: %q", got)
	}
}

// TestFolderRecover: a kill between the two renames of Commit loses nothing. The next run in that place, of another name's place not,
// finds the old folder there again, even after a sweep, and only when its writer has gone and the place is free.
func TestFolderRecover(t *testing.T) {
	for _, linked := range []bool{false, true} {
		dir := t.TempDir()
		path, real := filepath.Join(dir, "out"), filepath.Join(dir, "out")
		if linked {
			real = filepath.Join(dir, "real")
			if err := os.Symlink("real", path); err != nil {
				t.Skip(err)
			}
		}
		if err := os.Mkdir(real, 0o755); err != nil {
			t.Fatal(err)
		}
		touch(t, filepath.Join(real, testMark))
		w, err := CreateFolder(path, 1, marked, Options{Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		// Half of place, in which the process is killed.
		aside, err := w.moveAside()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the old folder is still there: %v", err)
		}
		if runtime.GOOS != "windows" { // where folders with open files are not renamed, and the lock is given up first
			if from, err := Recover(path); from != "" || err != nil {
				t.Errorf("taken back from a writer that lives: %s, %v", from, err)
			}
		}
		w.lock.Close()
		forget(w.tmp)
		Sweep(dir)
		if from, err := Recover(filepath.Join(dir, "other")); from != "" || err != nil {
			t.Errorf("brought back as another: %s, %v", from, err)
		}
		if err := os.Mkdir(real, 0o755); err != nil {
			t.Fatal(err)
		}
		if from, err := Recover(path); from != "" || err != nil {
			t.Errorf("brought back to a place that is taken: %s, %v", from, err)
		}
		if err := os.Remove(real); err != nil {
			t.Fatal(err)
		}
		if _, err := CreateFolder(path, 1, marked, Options{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("a run without Overwrite: %v", err)
		}
		if got := files(t, real); got != testMark {
			t.Errorf("brought back: %q", got)
		}
		if _, err := os.Stat(aside); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: still there: %v", aside, err)
		}
		Sweep(dir)
		if _, err := os.Stat(w.tmp); !errors.Is(err, fs.ErrNotExist) && runtime.GOOS != "windows" {
			t.Errorf("%s: still there: %v", w.tmp, err)
		}
		if from, err := Recover(path); from != "" || err != nil {
			t.Errorf("again: %s, %v", from, err)
		}
	}
}

// TestFolderReplaced: a kill after the new folder took the place leaves the old one aside. It is gone for good: a user who deletes the
// output does not find it there again, and a sweep removes it.
func TestFolderReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(path, testMark))
	w, err := CreateFolder(path, 1, marked, Options{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	// Most of place, in which the process is killed.
	aside, err := w.moveAside()
	if err != nil {
		t.Fatal(err)
	}
	w.lock.Close()
	forget(w.tmp)
	if err := errors.Join(os.Rename(w.tmp, path), os.RemoveAll(path)); err != nil {
		t.Fatal(err)
	}
	if from, err := Recover(path); from != "" || err != nil {
		t.Errorf("%s, of a Commit that was through, was brought back: %v", from, err)
	}
	if _, err := os.Stat(aside); err != nil {
		t.Fatal(err)
	}
	Sweep(dir)
	if got := files(t, dir); got != "" {
		t.Errorf("after a sweep: %q", got)
	}
}

// TestFolderAbandoned: a process that ends without waiting leaves what was in the place there.
func TestFolderAbandoned(t *testing.T) {
	t.Cleanup(func() { abandoned = false })
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	touch(t, filepath.Join(path, testMark))
	w, err := CreateFolder(path, 1, marked, Options{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	abandoned = true // what Abandon does first, when a Commit has come this far
	mu.Unlock()
	if err := w.Commit(); !errors.Is(err, errEnding) {
		t.Errorf("%v", err)
	}
	if got := files(t, dir) + ": " + files(t, path); got != "out: "+testMark {
		t.Errorf("there is %q", got)
	}
}
