package store

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

var parts = []Part{{"model", "1"}, {"calibration text", "2"}, {"llmq version", "3"}}

func openDir(t *testing.T, path string, parts []Part) *Dir {
	t.Helper()
	d, err := OpenDir(path, parts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func put(t *testing.T, s Store, name string, content []byte) {
	t.Helper()
	w, err := s.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for b := content; len(b) > 0; { // in pieces of any size
		n := min(len(b), 1+len(b)/3)
		if _, err := w.Write(b[:n]); err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

func get(s Store, name string) ([]byte, error) {
	r, err := s.Open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// TestDir: values of all sizes around the buffer's come back, here and to a process that opens the folder later.
func TestDir(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "work")
	d := openDir(t, path, parts)
	want := map[string][]byte{}
	for name, n := range map[string]int{"empty": 0, "one": 1, "layer": 1000, "full": bufferBytes - trailerSize, "states": bufferBytes,
		"more": 2*bufferBytes + 12345} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i * 7 >> 3)
		}
		want[name] = b
		put(t, d, name, b)
	}
	put(t, d, "one", []byte("another")) // replaces it
	want["one"] = []byte("another")
	for range 2 {
		for name, b := range want {
			if got, err := get(d, name); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(b), err)
			}
		}
		names, err := d.Names()
		if slices.Sort(names); err != nil || !slices.Equal(names, []string{"empty", "full", "layer", "more", "one", "states"}) {
			t.Errorf("values %q, %v", names, err)
		}
		d.Close()
		d = openDir(t, path, parts)
	}
	if err := d.Delete("one", "absent", "more"); err != nil {
		t.Error(err)
	}
	if _, err := get(d, "one"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a deleted value: %v", err)
	}
}

// TestUnfinished: nothing is seen of a value before Commit, nor after Abort.
func TestUnfinished(t *testing.T) {
	d := openDir(t, t.TempDir(), parts)
	put(t, d, "a", []byte("old"))
	for _, name := range []string{"a", "b"} {
		w, err := d.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, 3*bufferBytes))
		if got, err := get(d, "a"); err != nil || string(got) != "old" {
			t.Errorf("while it is written: %q, %v", got, err)
		}
		w.Abort()
		if w.Commit() == nil {
			t.Error("an aborted value is committed")
		}
	}
	if _, err := get(d, "b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an aborted value: %v", err)
	}
	if got, err := get(d, "a"); err != nil || string(got) != "old" {
		t.Errorf("after all: %q, %v", got, err)
	}
	list, err := os.ReadDir(d.Path())
	if err != nil || len(list) != 2 {
		t.Errorf("the folder holds %v, %v", list, err)
	}
}

// TestDamaged: what is not what was written is absent, and can be written again.
func TestDamaged(t *testing.T) {
	content := []byte(strings.Repeat("hidden states ", 100))
	other := t.TempDir()
	o := openDir(t, other, parts[:2])
	put(t, o, "a", content)
	foreign, err := os.ReadFile(o.file("a"))
	if err != nil {
		t.Fatal(err)
	}
	for what, damage := range map[string]func(b []byte) []byte{
		"first byte":    func(b []byte) []byte { b[0] ^= 1; return b },
		"in the middle": func(b []byte) []byte { b[700] ^= 0x80; return b },
		"digest":        func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"magic":         func(b []byte) []byte { b[len(content)] ^= 1; return b },
		"cut":           func(b []byte) []byte { return b[:len(b)-1] },
		"cut short":     func(b []byte) []byte { return b[:10] },
		"empty":         func([]byte) []byte { return nil },
		"longer":        func(b []byte) []byte { return append(b, 'x') },
		"zeros":         func(b []byte) []byte { clear(b); return b },
		"another run's": func([]byte) []byte { return foreign },
	} {
		path := t.TempDir()
		d := openDir(t, path, parts)
		put(t, d, "a", content)
		d.Close()
		b, err := os.ReadFile(d.file("a"))
		if err == nil {
			err = os.WriteFile(d.file("a"), damage(b), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		d = openDir(t, path, parts)
		if _, err := get(d, "a"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
		if got := d.Damaged(); !slices.Equal(got, []string{"a"}) {
			t.Errorf("%s: damaged are %q", what, got)
		}
		if names, _ := d.Names(); len(names) > 0 {
			t.Errorf("%s: %q are left", what, names)
		}
		put(t, d, "a", content)
		if got, err := get(d, "a"); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: made again: %v", what, err)
		}
	}
	// A value under another's name.
	d := openDir(t, t.TempDir(), parts)
	put(t, d, "a", content)
	os.Rename(d.file("a"), d.file("b"))
	if _, err := get(d, "b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("renamed: %v", err)
	}
}

// TestOtherRun: a folder is refused to a run of anything else, which is told what differs, and to two processes at a time.
func TestOtherRun(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path, parts)
	if _, err := OpenDir(path, parts); err == nil || !strings.Contains(err.Error(), "another process works in this folder") {
		if runtime.GOOS != "windows" { // where nothing is locked
			t.Errorf("twice: %v", err)
		}
	}
	d.Close()
	change := func(changed ...int) []Part {
		p := slices.Clone(parts)
		for _, i := range changed {
			p[i].Digest += "x"
		}
		return p
	}
	for want, p := range map[string][]Part{
		"another model:":                           change(0),
		"another calibration text:":                change(1),
		"another llmq version:":                    change(2),
		"another model, another calibration text:": change(0, 1),
		"with another llmq version:":               parts[:2],
	} {
		_, err := OpenDir(path, p)
		if other, ok := errors.AsType[*OtherRunError](err); !ok || other.Path != path || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	openDir(t, path, parts).Close()
}

// TestForeignFolder: what is no run's folder is left alone.
func TestForeignFolder(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "photo.jpg")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: `holds "photo.jpg"`, file: "not a directory"} {
		if _, err := OpenDir(path, parts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
		if _, err := Look(t.Context(), path); err == nil {
			t.Errorf("%s: has an overview", path)
		}
	}
	for name, content := range map[string]string{"torn": `{"format":`, "newer": `{"format": 2}`, "empty": ""} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, runName), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenDir(dir, parts); err == nil || !strings.Contains(err.Error(), runName) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLook: a folder can be looked at while a process works in it, and after.
func TestLook(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path, parts)
	if o, err := Look(t.Context(), path); err != nil || !o.Noted.IsZero() || o.Bytes != 0 {
		t.Errorf("at first: %+v, %v", o, err)
	}
	put(t, d, "a", make([]byte, 1000))
	if err := errors.Join(d.Note(&Standing{Layers: 1}), d.Note(&Standing{Layers: 2})); err != nil {
		t.Fatal(err)
	}
	o, err := Look(t.Context(), path)
	if err != nil || o.Layers != 2 || o.Bytes != 1000+int64(trailerSize) || o.Noted.IsZero() {
		t.Errorf("%+v, %v", o, err)
	}
	if !o.Working && runtime.GOOS != "windows" {
		t.Error("nobody is seen to work")
	}
	d.Close()
	if o, err := Look(t.Context(), path); err != nil || o.Working {
		t.Errorf("in the end: %+v, %v", o, err)
	}
}

// TestRoom: more than any disk has is refused, and what is there counts.
func TestRoom(t *testing.T) {
	d := openDir(t, t.TempDir(), parts)
	if err := d.Room(1 << 20); err != nil {
		t.Error(err)
	}
	if err := d.Room(1 << 60); err == nil || !strings.Contains(err.Error(), "needs 1152921504606846976 bytes of disk") {
		t.Errorf("%v", err)
	}
}

// TestLeft: layers are taken to go on as the last ones went.
func TestLeft(t *testing.T) {
	s := Standing{Layers: 20}
	if _, _, ok := s.Left(); ok {
		t.Error("nothing is done, and the time is known")
	}
	s.Expected = 90 // of all that is left, until a layer tells
	if n, d, ok := s.Left(); n != 20 || d != 90*time.Second || !ok {
		t.Errorf("%d layers, %v, %v", n, d, ok)
	}
	s.LayerSeconds = []float64{1000, 1000, 2, 2, 2, 2, 4, 4, 4, 4}
	if n, d, ok := s.Left(); n != 10 || d != 30*time.Second || !ok {
		t.Errorf("%d layers, %v, %v", n, d, ok)
	}
	s.LayerSeconds = make([]float64, 21) // the head too
	if n, d, _ := s.Left(); n != 0 || d != 0 {
		t.Errorf("%d layers, %v", n, d)
	}
}

// TestPartial: partial outputs are no values, count as what the run takes, and go by the beginnings of their names.
func TestPartial(t *testing.T) {
	path := t.TempDir()
	d := openDir(t, path, parts)
	for _, name := range []string{d.Partial("run1-output"), d.Partial("run1-output") + "-00002", d.Partial("run2-output")} {
		if err := os.WriteFile(name, []byte("1234567"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(t, d, "run1-layer", []byte("x"))
	if names, err := d.Names(); err != nil || !slices.Equal(names, []string{"run1-layer"}) {
		t.Errorf("values %q, %v", names, err)
	}
	if o, err := Look(t.Context(), path); err != nil || o.Bytes != 3*7+int64(1+trailerSize) {
		t.Errorf("%+v, %v", o, err)
	}
	if err := d.RemovePartials("run1-"); err != nil {
		t.Fatal(err)
	}
	for name, there := range map[string]bool{"run1-output.partial": false, "run1-output.partial-00002": false, "run2-output.partial": true, "run1-layer.value": true} {
		if _, err := os.Stat(filepath.Join(path, name)); (err == nil) != there {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.Discard("run1-layer"); err != nil || !slices.Equal(d.Damaged(), []string{"run1-layer"}) {
		t.Errorf("damaged: %q, %v", d.Damaged(), err)
	}
	if b, err := get(d, "run1-layer"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("discarded, it reads %q, %v", b, err)
	}
}
