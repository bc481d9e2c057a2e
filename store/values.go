package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// files is a place for files, each of which is whole or absent. It may be used by several goroutines.
type files interface {
	Path() string
	// read opens a file; an error that is fs.ErrNotExist if it is absent.
	read(name string) (content, error)
	// create starts a file of a size, 0 if that is not known.
	create(name string, size int64, opt creation) (Writer, error)
	// remove removes a file, if it is there.
	remove(name string) error
	// list lists all files.
	list() ([]info, error)
}

// creation says how a file begins.
type creation struct {
	replace  bool // without it, it is an error that is fs.ErrExist, now or in Commit, if there is a file of that name
	fleeting bool // it need not outlast a power cut
}

// content is a file that is being read, as it was when it was opened.
type content interface {
	size() int64                 // −1 of what is no file
	reader() (io.Reader, error)  // from its beginning, each time
	end(n int64) ([]byte, error) // its last bytes
	// unsure says that what a reader gives may differ from what another one gave.
	unsure() bool
	Close() error
}

// info is a file of a list.
type info struct {
	name    string
	size    int64
	changed time.Time
}

// A value's file is its contents and a trailer: magic, then the SHA-256.
const (
	magic       = "llmqval1"
	trailerSize = len(magic) + sha256.Size
)

// bufferBytes is how much is read or written at a time: enough for writes to go past the page cache.
const bufferBytes = 4 << 20

// values are the values of a run in files. It implements Shared.
type values struct {
	files
	id    string // what all values belong to
	mu    sync.Mutex
	whole map[string]string // digests of values that have been checked, or were written here
	// damaged are the names of values that were removed, as their contents were not what had been written.
	damaged []string
}

func newValues(f files, parts []Part) *values {
	return &values{files: f, id: identity(parts), whole: map[string]string{}}
}

// ID implements Folder.
func (v *values) ID() string { return v.id }

// Damaged implements Folder.
func (v *values) Damaged() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.damaged)
}

// hash begins the digest of a value.
func (v *values) hash(name string) hash.Hash {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n", v.id, name)
	return h
}

// Names implements Store.
func (v *values) Names() ([]string, error) {
	list, err := v.list()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range list {
		if name, ok := strings.CutSuffix(i.name, valueSuffix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Delete implements Store.
func (v *values) Delete(names ...string) error {
	var errs []error
	for _, name := range names {
		v.mu.Lock()
		delete(v.whole, name)
		v.mu.Unlock()
		errs = append(errs, v.remove(name+valueSuffix))
	}
	return errors.Join(errs...)
}

// Open implements Store.
func (v *values) Open(name string) (io.ReadCloser, error) {
	c, digest, err := v.open(name)
	if err != nil {
		return nil, err
	}
	r, err := c.reader()
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	size := c.size() - int64(trailerSize)
	r = io.LimitReader(r, size)
	if c.unsure() {
		r = &verifier{r: r, h: v.hash(name), left: size, want: digest, what: v.Path() + "/" + name + valueSuffix}
	}
	return struct {
		io.Reader
		io.Closer
	}{bufio.NewReaderSize(r, int(min(bufferBytes, size+1))), c}, nil
}

// Digest implements Shared.
func (v *values) Digest(name string) (string, error) {
	c, err := v.read(name + valueSuffix)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if c.size() < int64(trailerSize) {
		return "", fmt.Errorf("%s/%s: is not what was written there: %w", v.Path(), name+valueSuffix, fs.ErrNotExist)
	}
	sum, err := c.end(sha256.Size)
	return hex.EncodeToString(sum), err
}

// open opens a value that is what was written, and removes one that is not.
func (v *values) open(name string) (c content, digest string, err error) {
	if c, err = v.read(name + valueSuffix); err != nil {
		return nil, "", err
	}
	if digest, err = v.check(name, c); err != nil {
		return nil, "", errors.Join(err, c.Close())
	}
	if digest != "" {
		return c, digest, nil
	}
	c.Close()
	if err := v.Discard(name); err != nil {
		return nil, "", err
	}
	return nil, "", fmt.Errorf("%s/%s: is not what was written there: %w", v.Path(), name+valueSuffix, fs.ErrNotExist)
}

// Discard removes a value that is damaged, or that tells of something that is.
func (v *values) Discard(name string) error {
	if err := v.Delete(name); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.damaged = append(v.damaged, name)
	return nil
}

// check returns a value's digest, "" if its contents are not what was written.
func (v *values) check(name string, c content) (string, error) {
	size := c.size() - int64(trailerSize)
	if size < 0 {
		return "", nil
	}
	v.mu.Lock()
	digest := v.whole[name]
	v.mu.Unlock()
	if digest != "" {
		return digest, nil
	}
	r, err := c.reader()
	if err != nil {
		return "", err
	}
	h := v.hash(name)
	if _, err := io.CopyBuffer(h, io.LimitReader(r, size), make([]byte, min(bufferBytes, size+1))); err != nil {
		return "", err
	}
	trailer := make([]byte, trailerSize)
	if _, err := io.ReadFull(r, trailer); err != nil {
		return "", err
	}
	sum := h.Sum(nil)
	if !bytes.Equal(trailer, append([]byte(magic), sum...)) {
		return "", nil
	}
	digest = hex.EncodeToString(sum)
	v.mu.Lock()
	v.whole[name] = digest
	v.mu.Unlock()
	return digest, nil
}

// verifier reads what another reader has read and found to have a digest, and fails in the end if this one gives something else.
type verifier struct {
	r    io.Reader
	h    hash.Hash
	left int64
	want string
	what string
}

func (r *verifier) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.h.Write(p[:n])
	if r.left -= int64(n); r.left == 0 && hex.EncodeToString(r.h.Sum(nil)) != r.want {
		return 0, fmt.Errorf("%s: reads differently than before", r.what)
	}
	return n, err
}

// valueWriter is a value on its way to its file.
type valueWriter struct {
	v    *values
	name string
	w    Writer
	h    hash.Hash
}

// Create implements Store.
func (v *values) Create(name string) (Writer, error) { return v.start(name, creation{replace: true}) }

func (v *values) start(name string, opt creation) (*valueWriter, error) {
	w, err := v.create(name+valueSuffix, 0, opt)
	if err != nil {
		return nil, err
	}
	return &valueWriter{v, name, w, v.hash(name)}, nil
}

func (w *valueWriter) Write(p []byte) (int, error) {
	w.h.Write(p)
	return w.w.Write(p)
}

func (w *valueWriter) digest() string { return hex.EncodeToString(w.h.Sum(nil)) }

func (w *valueWriter) Commit() error {
	if _, err := w.w.Write(append([]byte(magic), w.h.Sum(nil)...)); err != nil {
		w.w.Abort()
		return err
	}
	if err := w.w.Commit(); err != nil {
		return err
	}
	w.v.mu.Lock()
	w.v.whole[w.name] = w.digest()
	w.v.mu.Unlock()
	return nil
}

func (w *valueWriter) Abort() { w.w.Abort() }

// Put implements Shared.
func (v *values) Put(name string, lasting bool, write func(w io.Writer) error) (digest string, err error) {
	w, err := v.start(name, creation{fleeting: !lasting})
	if errors.Is(err, fs.ErrExist) {
		h := v.hash(name)
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
	digest = w.digest()
	if err := w.Commit(); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return digest, nil
}
