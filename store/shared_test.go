package store

import (
	"errors"
	"io"
	"io/fs"
	"testing"
)

// TestPut: the first value of a name stays, whichever process brings it, and both learn their digests.
func TestPut(t *testing.T) {
	d := openDir(t, t.TempDir(), parts)
	joined, err := JoinDir(d.Path())
	if err != nil {
		t.Fatal(err)
	}
	if joined.ID() != d.ID() {
		t.Error("the folder has two identities")
	}
	putNew := func(d *Dir, content string) string {
		digest, err := d.Put("a", len(content) > 3, func(w io.Writer) error {
			_, err := io.WriteString(w, content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	if _, err := d.Digest("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	first := putNew(joined, "one")
	if same := putNew(d, "one"); same != first {
		t.Errorf("the same value has digests %s and %s", first, same)
	}
	if other := putNew(d, "another"); other == first {
		t.Error("another value has the same digest")
	}
	for _, d := range []*Dir{d, joined} {
		if got, err := get(d, "a"); err != nil || string(got) != "one" {
			t.Errorf("%q, %v", got, err)
		}
		if got, err := d.Digest("a"); err != nil || got != first {
			t.Errorf("digest %s of %s, %v", got, first, err)
		}
	}
	// A write that fails leaves nothing.
	boom := errors.New("boom")
	if _, err := d.Put("b", true, func(io.Writer) error { return boom }); err != boom {
		t.Errorf("%v", err)
	}
	if _, err := get(d, "b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a failure: %v", err)
	}
}

// TestJoinNothing: a folder that no run works in cannot be joined.
func TestJoinNothing(t *testing.T) {
	if _, err := JoinDir(t.TempDir()); err == nil {
		t.Error("an empty folder is joined")
	}
}
