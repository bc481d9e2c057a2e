//go:build linux || darwin

package mmap

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestChanged: writing to a mapped file is noticed, at any size; giving its name to another file is not, as the view is still
// of the old one.
func TestChanged(t *testing.T) {
	data := []byte("some weights")
	for name, change := range map[string]func(path string) error{
		"cut off":   func(path string) error { return os.Truncate(path, 3) },
		"longer":    func(path string) error { return os.Truncate(path, 100) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"rewritten": func(path string) error { return os.WriteFile(path, []byte("SOME WEIGHTS"), 0o644) },
		"older":     func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1e9, 0)) },
	} {
		path := write(t, data)
		past := time.Now().Add(-time.Hour) // the clock of files may not move in a millisecond
		if err := os.Chtimes(path, past, past); err != nil {
			t.Fatal(err)
		}
		m, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Changed(); err != nil {
			t.Errorf("%s: before: %v", name, err)
		}
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		if err := m.Changed(); err == nil || !strings.HasPrefix(err.Error(), path+": the file was ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(path string) error{
		"renamed": func(path string) error { return os.Rename(path, path+"-old") },
		"removed": os.Remove,
		"replaced": func(path string) error {
			other := filepath.Join(filepath.Dir(path), "other")
			return errors.Join(os.WriteFile(other, []byte("of another size"), 0o644), os.Rename(other, path))
		},
		"read": func(path string) error { _, err := os.ReadFile(path); return err },
	} {
		path := write(t, data)
		m, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		if err := m.Changed(); err != nil || string(m.Data) != string(data) {
			t.Errorf("%s: %v, %q", name, err, m.Data)
		}
	}
}

// TestGuard reads a page of a file that is not there any more.
func TestGuard(t *testing.T) {
	page := os.Getpagesize()
	m, err := Open(write(t, make([]byte, 3*page)))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := os.Truncate(m.path, int64(page)); err != nil {
		t.Fatal(err)
	}
	cleaned := false
	err = Guard(func() error {
		defer func() { cleaned = true }()
		t.Errorf("read %d", m.Data[2*page])
		return nil
	})
	if err == nil || !cleaned || err.Error() != m.Changed().Error() {
		t.Errorf("got %v; cleaned up: %v", err, cleaned)
	}
	if err := Guard(func() error { _ = m.Data[0]; return os.ErrInvalid }); err != os.ErrInvalid {
		t.Errorf("what is there: %v", err)
	}
	// Those who open a file close it while the fault unwinds their calls.
	want := m.Changed().Error()
	if err := Guard(func() error {
		defer m.Close()
		return fmt.Errorf("read %d", m.Data[page])
	}); err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
	// Bugs stay panics.
	var none *Map
	for _, bug := range []func() error{
		func() error { panic("a bug") },
		func() error { return os.ErrExist.(interface{ none() error }).none() },
		func() error { _ = none.path; return nil },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Error("a panic was swallowed")
				}
			}()
			t.Error(Guard(bug))
		}()
	}
}
