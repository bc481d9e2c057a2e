// Package shared finds the trained models, texts and reference vectors that lie beside a developer's checkout. Nothing
// depends on them: a test that uses them checks more when they are there.
package shared

import (
	"os"
	"path/filepath"
	"testing"
)

// Path returns the path of a file or folder below ../shared, seen from the repository's root; it skips the test, which
// should be one of its own, if there is none.
func Path(t testing.TB, name string) string {
	t.Helper()
	path, ok := Lookup(name)
	if !ok {
		t.Skipf("%s: this checkout has no ../shared beside it", name)
	}
	return path
}

// Lookup is Path for code that goes on without the file.
func Lookup(name string) (path string, ok bool) {
	dir, err := os.Getwd()
	if err != nil {
		return "", false
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", false
		}
		dir = parent
	}
	path = filepath.Join(filepath.Dir(dir), "shared", name)
	_, err = os.Stat(path)
	return path, err == nil
}
