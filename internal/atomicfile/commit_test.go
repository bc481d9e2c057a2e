package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// set starts files 0 to n−1.
func set(t *testing.T, dir string, n int, opt Options) []*File {
	t.Helper()
	var files []*File
	for i := range n {
		w, err := Create(filepath.Join(dir, fmt.Sprint(i)), 3, opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Abort)
		if _, err := w.WriteAt([]byte("new"), 0); err != nil {
			t.Fatal(err)
		}
		files = append(files, w)
	}
	return files
}

// content is what the files of a folder hold, by name.
func content(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := ""
	for _, e := range list {
		b, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		s += fmt.Sprintf("%s:%s ", e.Name(), b)
	}
	return s
}

func TestCommitSeveral(t *testing.T) {
	dir := t.TempDir()
	files := set(t, dir, 3, Options{})
	if err := Commit(files...); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir); got != "0:new 1:new 2:new " {
		t.Errorf("the folder holds %s", got)
	}
	if err := Commit(files...); err == nil {
		t.Error("a second Commit succeeds")
	}
	for i := range 3 {
		os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("old"), 0o644)
	}
	if err := Commit(set(t, dir, 3, Options{Overwrite: true})...); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir); got != "0:new 1:new 2:new " {
		t.Errorf("the folder holds %s", got)
	}
}

// TestCommitSeveralFails: of files of which one cannot take its place, none does.
func TestCommitSeveralFails(t *testing.T) {
	for i := range 3 {
		dir := t.TempDir()
		files := set(t, dir, 3, Options{})
		os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte("another's"), 0o644)
		if err := Commit(files...); err == nil {
			t.Errorf("file %d is there already, and Commit succeeds", i)
		}
		if got, want := content(t, dir), fmt.Sprintf("%d:another's ", i); got != want {
			t.Errorf("the folder holds %s, want %s", got, want)
		}
		// The temporary file goes missing, which only the rename notices.
		dir = t.TempDir()
		os.WriteFile(filepath.Join(dir, "0"), []byte("old"), 0o644)
		files = set(t, dir, 3, Options{Overwrite: true})
		os.Remove(files[i].Temp())
		if err := Commit(files...); err == nil {
			t.Errorf("temporary file %d is gone, and Commit succeeds", i)
		}
		if got := content(t, dir); got != "" {
			t.Errorf("the folder holds %s: a set without all of its files", got)
		}
	}
}
