package mmap

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tap is a Filler that writes ones.
type tap struct {
	path    string
	fail    error
	dropped [][2]int64
}

func (f *tap) Fill(lo, hi int64) error {
	if f.fail != nil {
		return f.fail
	}
	file, err := os.OpenFile(f.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteAt(bytes.Repeat([]byte{1}, int(hi-lo)), lo)
	return errors.Join(err, file.Close())
}

func (f *tap) Drop(parts [][2]int64) error {
	f.dropped = append(f.dropped, parts...)
	return nil
}

func (f *tap) There(lo, hi int64) bool { return hi < 5 }
func (f *tap) Gone(lo, hi int64) bool  { return false }

// TestLazy: what has not come, or has gone, is a fault, never zeros.
func TestLazy(t *testing.T) {
	page := os.Getpagesize()
	f := &tap{path: filepath.Join(t.TempDir(), "a")}
	if err := os.WriteFile(f.path, []byte("header"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(f.path, int64(8*page)); err != nil {
		t.Fatal(err)
	}
	m, err := OpenLazy(f.path, 6, f)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if !m.Lazy() || string(m.Data[:6]) != "header" {
		t.Errorf("lazy %v, data %q", m.Lazy(), m.Data[:6])
	}
	read := func(i int) (b byte, err error) {
		err = Guard(func() error { b = m.Data[i]; return nil })
		return b, err
	}
	part := m.Data[2*page+5 : 4*page+7]
	if _, err := read(3 * page); err == nil || !strings.Contains(err.Error(), f.path) {
		t.Errorf("what has not come is read, error %v", err)
	}
	if err := m.Need(part); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(part, bytes.Repeat([]byte{1}, len(part))) {
		t.Error("what has come is not what was written")
	}
	if err := m.Changed(); err != nil {
		t.Errorf("what has come counts as a change: %v", err)
	}
	if _, err := read(5 * page); err == nil {
		t.Error("what has not come is read")
	}
	m.Release(part)
	if len(f.dropped) > 0 {
		t.Errorf("dropped %v at a release", f.dropped)
	}
	if err := m.Drop(part, part[:0], part[1:]); err != nil || len(f.dropped) != 2 || f.dropped[1] != [2]int64{int64(2*page + 6), int64(4*page + 7)} {
		t.Errorf("dropped %v, %v", f.dropped, err)
	}
	if m.There(part) || !m.There(m.Data[:4]) {
		t.Error("the filler is not asked what is there")
	}
	if err := m.Forbid(int64(2*page+5), int64(4*page+7)); err != nil {
		t.Fatal(err)
	}
	if _, err := read(3 * page); err == nil {
		t.Error("what has gone is read")
	}
	if b, err := read(2*page + 6); b != 1 || err != nil { // its page has other bytes
		t.Errorf("%d, %v", b, err)
	}
	f.fail = errors.New("no network")
	if err := m.Need(part); !errors.Is(err, f.fail) {
		t.Errorf("error %v", err)
	}
}
