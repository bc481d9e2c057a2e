package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOpenFiles: links to open files, as /dev/stdout is one, lead to what is open.
func TestOpenFiles(t *testing.T) {
	dir, links := t.TempDir(), t.TempDir()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	open := func(name string) *os.File {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	file, deleted, decoy := open("file"), open("deleted"), open("decoy")
	os.Remove(deleted.Name())
	os.Remove(decoy.Name())
	put(t, decoy.Name()+" (deleted)", "another file") // what the link's text reads as
	link := func(name string, f *os.File) string {
		path := filepath.Join(links, name)
		if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	before := ""
	for _, c := range []struct {
		name string
		f    *os.File
		want string
	}{
		{"pipe", w, "a pipe, not a regular file"},
		{"deleted", deleted, "leads to an open file that has no name"},
		{"decoy", decoy, "leads to an open file that has no name"},
	} {
		path := link(c.name, c.f)
		before = modes(t, links)
		for _, path := range []string{path, fmt.Sprintf("/proc/self/fd/%d", c.f.Fd())} {
			if _, err := Create(path, 1, Options{Overwrite: true}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %s", path, err, c.want)
			}
		}
		if after := modes(t, links); after != before {
			t.Errorf("the folder holds\n%s\nbefore\n%s", after, before)
		}
	}
	if got, err := Resolve(link("file", file)); err != nil || got != file.Name() {
		t.Errorf("a file with a name: %s, %v", got, err)
	}
	expect(t, dir, "file", "", "decoy (deleted)", "another file")
}
