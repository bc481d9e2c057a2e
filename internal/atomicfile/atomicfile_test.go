package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// contents lists a folder's files with what is in them.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]string)
	for _, e := range list {
		b, _ := os.ReadFile(filepath.Join(dir, e.Name())) // a folder reads as ""
		m[e.Name()] = string(b)
	}
	return m
}

// expect demands that a folder holds name=content pairs and nothing else.
func expect(t *testing.T, dir string, pairs ...string) {
	t.Helper()
	got := contents(t, dir)
	for i := 0; i < len(pairs); i += 2 {
		if c, ok := got[pairs[i]]; !ok || c != pairs[i+1] {
			t.Errorf("%s is %q (%v), want %q", pairs[i], c, ok, pairs[i+1])
		}
	}
	if len(got) != len(pairs)/2 {
		t.Errorf("the folder holds %q", got)
	}
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCommit(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	w, err := Create(path, 6, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// Out of order; what is not written is zero.
	for _, p := range []struct {
		s   string
		off int64
	}{{"de", 3}, {"a", 0}} {
		if _, err := w.WriteAt([]byte(p.s), p.off); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file is there before Commit: %v", err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	expect(t, dir, "out", "a\x00\x00de\x00")
	if err := w.Commit(); err == nil || !strings.Contains(err.Error(), "already closed") {
		t.Errorf("second Commit: %v", err)
	}
	if _, err := w.WriteAt([]byte("x"), 0); err == nil {
		t.Error("wrote after Commit")
	}
	expect(t, dir, "out", "a\x00\x00de\x00")

	// The mode is that of any new file.
	put(t, filepath.Join(dir, "plain"), "")
	a, _ := os.Stat(path)
	b, _ := os.Stat(filepath.Join(dir, "plain"))
	if a.Mode() != b.Mode() {
		t.Errorf("mode %v, a plain file's is %v", a.Mode(), b.Mode())
	}
}

func TestAbort(t *testing.T) {
	dir := t.TempDir()
	w, err := Create(filepath.Join(dir, "out"), 10, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.Abort()
		expect(t, dir)
	}
	if _, err := w.WriteAt([]byte("x"), 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("write after Abort: %v", err)
	}
	if err := w.Commit(); err == nil {
		t.Error("Commit after Abort succeeds")
	}
	expect(t, dir)
}

func TestExisting(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	put(t, path, "old")
	if _, err := Create(path, 3, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("existing file: %v", err)
	}
	expect(t, dir, "out", "old")

	w, err := Create(path, 3, Options{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := contents(t, dir)["out"]; got != "old" {
		t.Errorf("replaced before Commit: %q", got)
	}
	if _, err := w.WriteAt([]byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, "out", "new")

	w, err = Create(path, 3, Options{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	expect(t, dir, "out", "new")
}

// TestAppears lets a file take the output's name while it is being written.
func TestAppears(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	w, err := Create(path, 3, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, path, "other's")
	if err := w.Commit(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Commit: %v", err)
	}
	expect(t, dir, "out", "other's")
}

func TestRefused(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "file"), "")
	for _, test := range []struct {
		path, want string
		size       int64
	}{
		{"", "no output path", 1},
		{dir, "is a folder", 1},
		{filepath.Join(dir, "absent", "out"), "the folder to write to: ", 1},
		{filepath.Join(dir, "file", "out"), "not a ", 1}, // "not a directory" from the system, or "not a folder"
		{filepath.Join(dir, "out"), "needs 4611686018427387904 bytes of disk, ", 1 << 62},
	} {
		_, err := Create(test.path, test.size, Options{Overwrite: true})
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), test.path) {
			t.Errorf("%q: got %v, want %s", test.path, err, test.want)
		}
	}
	expect(t, dir, "file", "")
}

// TestLink writes through a symbolic link, as a plain create does.
func TestLink(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	put(t, target, "old")
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(target, link); err != nil {
		t.Skipf("no symbolic links: %v", err)
	}
	if _, err := Create(link, 3, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("link to an existing file: %v", err)
	}
	w, err := Create(link, 3, Options{Overwrite: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.WriteAt([]byte("new"), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	expect(t, dir, "target", "new")
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v", err)
	}
}

func TestSame(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	put(t, a, "")
	put(t, b, "")
	if !Same(a, filepath.Join(dir, ".", "x", "..", "a")) || Same(a, b) || Same(a, filepath.Join(dir, "absent")) ||
		Same(filepath.Join(dir, "absent"), a) {
		t.Error("Same is wrong about plain files")
	}
	if link := filepath.Join(dir, "l"); os.Symlink(a, link) == nil && (!Same(a, link) || Same(b, link)) {
		t.Error("Same is wrong about links")
	}
}

// TestAbandon gives up every output that is under way, and no other file.
func TestAbandon(t *testing.T) {
	t.Cleanup(func() { abandoned = false })
	dir, other := t.TempDir(), t.TempDir()
	whole, err := Create(filepath.Join(dir, "whole"), 0, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := whole.Commit(); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "old"), "old")
	var open []*File
	for _, path := range []string{filepath.Join(dir, "old"), filepath.Join(dir, "new"), filepath.Join(other, "new")} {
		w, err := Create(path, 3, Options{Overwrite: true})
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, w)
	}
	open[1].Abort()
	Abandon()
	for range 2 {
		expect(t, dir, "whole", "", "old", "old")
		expect(t, other)
		for _, w := range open {
			w.WriteAt([]byte("new"), 0)
			if w.Commit() == nil {
				t.Error("an abandoned output was committed")
			}
		}
	}
	if _, err := Create(filepath.Join(dir, "late"), 3, Options{}); err == nil {
		t.Error("an output was created after Abandon")
	}
	expect(t, dir, "whole", "", "old", "old")
}

// TestPieces writes a file in pieces of every size and alignment, from several goroutines and in no order.
func TestPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	want := make([]byte, 20<<20+12345)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	path := filepath.Join(t.TempDir(), "out")
	w, err := Create(path, int64(len(want)), Options{})
	if err != nil {
		t.Fatal(err)
	}
	type piece struct{ lo, hi int }
	var pieces []piece
	for lo := 0; lo < len(want); {
		n := 1 + rng.IntN(100)
		switch rng.IntN(3) {
		case 0:
			n = 4096 * (1 + rng.IntN(1500)) // up to the next alignment at once
		case 1:
			n += rng.IntN(3 << 20)
		}
		hi := min(lo+n, len(want))
		pieces = append(pieces, piece{lo, hi})
		lo = hi
	}
	rng.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
	var wg sync.WaitGroup
	for k := range 3 {
		wg.Go(func() {
			for i := k; i < len(pieces); i += 3 {
				p := pieces[i]
				if n, err := w.WriteAt(want[p.lo:p.hi], int64(p.lo)); n != p.hi-p.lo || err != nil {
					t.Errorf("bytes %d to %d: wrote %d, %v", p.lo, p.hi, n, err)
				}
			}
		})
	}
	wg.Wait()
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes come back as %d others", len(want), len(got))
	}
}
