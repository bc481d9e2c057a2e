package store

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/llmq/llmq/internal/atomicfile"
)

// Shared is a Store to which several processes put values. Values are pure functions of their names, so whoever comes first
// will do: what is there is not replaced.
type Shared interface {
	Store
	// Put keeps what write writes, unless the value is there already, and returns its digest in either case: two digests of
	// one name that differ come from a process that computes something else. A value that is not lasting may be found damaged,
	// and be absent, after a power cut.
	Put(name string, lasting bool, write func(w io.Writer) error) (digest string, err error)
	// Digest is what a value that is there says of itself, without a look at its contents; an error that is fs.ErrNotExist if
	// there is none.
	Digest(name string) (string, error)
}

// JoinDir opens the folder of a run that another process holds, to put values there and to read them.
func JoinDir(path string) (*Dir, error) {
	r, err := readRun(path)
	if err != nil {
		return nil, err
	}
	return &Dir{path: path, id: identity(r.Parts), whole: map[string]bool{}}, nil
}

// open opens a value's file. Over NFS another machine's may be there though a look at its name a moment ago, which the system
// remembers, says that it is not: until the folder is opened.
func (d *Dir) open(name string) (*os.File, error) {
	f, err := os.Open(d.file(name))
	if !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if folder, err := os.Open(d.path); err == nil {
		folder.Close()
	}
	return os.Open(d.file(name))
}

// ID tells the run that the folder belongs to from others.
func (d *Dir) ID() string { return d.id }

// Put implements Shared.
func (d *Dir) Put(name string, lasting bool, write func(w io.Writer) error) (digest string, err error) {
	w, err := d.create(name, atomicfile.Options{Fleeting: !lasting})
	if errors.Is(err, fs.ErrExist) {
		h := d.hash(name)
		b := bufio.NewWriterSize(h, 1<<16)
		if err := write(b); err != nil {
			return "", err
		}
		b.Flush() // a hash takes everything
		return hex.EncodeToString(h.Sum(nil)), nil
	}
	if err != nil {
		return "", err
	}
	defer w.Abort() // no effect after Commit
	if err := write(w); err != nil {
		return "", err
	}
	digest = hex.EncodeToString(w.h.Sum(nil))
	if err := w.Commit(); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return digest, nil
}

// Digest implements Shared.
func (d *Dir) Digest(name string) (string, error) {
	f, err := d.open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	digest := make([]byte, trailerSize-len(magic))
	if _, err := f.ReadAt(digest, info.Size()-int64(len(digest))); err != nil {
		return "", fmt.Errorf("the work folder: %s: %w", name, err)
	}
	return hex.EncodeToString(digest), nil
}
