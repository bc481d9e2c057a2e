//go:build linux || darwin

package atomicfile

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// nodes makes one of each kind of file that no output may replace, in a temporary folder, and returns their names and
// what an error must call them. Device nodes take a privilege; without it they are left out.
func nodes(t *testing.T, dir string) map[string]string {
	t.Helper()
	kinds := map[string]string{"pipe": "a pipe, not a regular file", "socket": "a socket, not a regular file", "folder": "is a folder"}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "socket"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"character device": unix.S_IFCHR, "block device": unix.S_IFBLK} {
		// Numbers that no driver has: nothing happens should it be opened.
		err := unix.Mknod(filepath.Join(dir, name), mode|0o600, int(unix.Mkdev(240, 77)))
		if errors.Is(err, unix.EPERM) {
			t.Logf("no %s: %v", name, err)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		kinds[name] = "a device, not a regular file"
	}
	return kinds
}

// modes lists a folder's entries with their modes and, of links, where they lead.
func modes(t *testing.T, dir string) string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range list {
		fi, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		link, _ := os.Readlink(filepath.Join(dir, e.Name()))
		b.WriteString(e.Name() + " " + fi.Mode().String() + " " + link + "\n")
	}
	return b.String()
}

// TestSpecialFiles: neither a special file nor a link to one is ever replaced, whatever the options.
func TestSpecialFiles(t *testing.T) {
	dir, links := t.TempDir(), t.TempDir()
	kinds := nodes(t, dir)
	for name := range kinds {
		first, second := filepath.Join(links, name), filepath.Join(links, name+" twice")
		if err := errors.Join(os.Symlink(filepath.Join(dir, name), first), os.Symlink(filepath.Base(first), second)); err != nil {
			t.Fatal(err)
		}
	}
	before := modes(t, dir) + modes(t, links)
	for name, want := range kinds {
		for _, path := range []string{filepath.Join(dir, name), filepath.Join(links, name), filepath.Join(links, name+" twice")} {
			for _, opt := range []Options{{}, {Overwrite: true}} {
				if _, err := Create(path, 1, opt); err == nil || !strings.Contains(err.Error(), path+": ") || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: got %v, want %s", path, err, want)
				}
			}
		}
	}
	if after := modes(t, dir) + modes(t, links); after != before {
		t.Errorf("the folders hold\n%s\nbefore\n%s", after, before)
	}
}

// TestSpecialFileAppears: what became a special file while the output was written is left alone.
func TestSpecialFileAppears(t *testing.T) {
	dir := t.TempDir()
	for name, place := range map[string]func(path string) error{
		"pipe": func(path string) error { return unix.Mkfifo(path, 0o644) },
		"link": func(path string) error { return os.Symlink("/nowhere", path) },
	} {
		path := filepath.Join(dir, name)
		w, err := Create(path, 1, Options{Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := place(path); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(path)
		if err := w.Commit(); err == nil || !strings.Contains(err.Error(), "a "+name+", not a regular file") {
			t.Errorf("%s: got %v", name, err)
		}
		if after, err := os.Lstat(path); err != nil || after.Mode() != before.Mode() {
			t.Errorf("%s: is %v, %v", name, after, err)
		}
	}
}

// TestDanglingLinks: a link to nothing creates what it leads to, where it leads to, as a plain create does.
func TestDanglingLinks(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"real/deep", "other"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put(t, filepath.Join(root, "file"), "")
	for link, target := range map[string]string{
		"absolute": filepath.Join(root, "other", "absolute.out"),
		"relative": "other/relative.out",
		"chain":    "chain2",
		"chain2":   "other/chain.out",
		"shortcut": "real/deep",
		// The kernel goes from real/deep, where shortcut leads, to real; not back to the root.
		"up":       "shortcut/../up.out",
		"loop":     "loop2",
		"loop2":    "loop",
		"nowhere":  "absent/out",
		"through":  "file/out",
		"selflink": "selflink",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ path, created string }{
		{"absolute", "other/absolute.out"},
		{"relative", "other/relative.out"},
		{"chain", "other/chain.out"},
		{"up", "real/up.out"},
		{"shortcut/in.out", "real/deep/in.out"},
	} {
		w, err := Create(filepath.Join(root, c.path), 1, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		w.WriteAt([]byte("x"), 0)
		if err := w.Commit(); err != nil {
			t.Errorf("%s: %v", c.path, err)
		}
		if fi, err := os.Lstat(filepath.Join(root, c.created)); err != nil || !fi.Mode().IsRegular() {
			t.Errorf("%s: %s is %v, %v", c.path, c.created, fi, err)
		}
		if fi, err := os.Lstat(filepath.Join(root, c.path)); c.path != "shortcut/in.out" && (err != nil || fi.Mode()&fs.ModeSymlink == 0) {
			t.Errorf("%s: the link is gone: %v", c.path, err)
		}
	}
	for path, want := range map[string]string{
		"loop": "too many levels", "selflink": "too many levels", "nowhere": "the folder to write to: ", "through": "not a directory",
	} {
		if _, err := Create(filepath.Join(root, path), 1, Options{Overwrite: true}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", path, err, want)
		}
	}
}
