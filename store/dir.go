package store

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/llmq/llmq/internal/atomicfile"
)

// Part is one thing that a run's results depend on: what a user calls it, and a digest of it.
type Part struct {
	What   string `json:"what"` // "model", "calibration text"
	Digest string `json:"digest"`
}

// Digest is the digest of what write writes.
func Digest(write func(w io.Writer)) string {
	h := sha256.New()
	b := bufio.NewWriterSize(h, 1<<16)
	write(b)
	b.Flush() // a hash takes everything
	return hex.EncodeToString(h.Sum(nil))
}

// Names of a folder's files: runName says what run it belongs to, and is held by whoever works in it; progressName says how
// far that is; values have valueSuffix.
const (
	runName      = "run.json"
	progressName = "progress.json"
	valueSuffix  = ".value"
)

// run is the file runName.
type run struct {
	Format int    `json:"format"`
	Parts  []Part `json:"parts"`
}

// format changes when values are written in another way.
const format = 1

// A value's file is its contents and a trailer: magic, then the SHA-256.
const (
	magic       = "llmqval1"
	trailerSize = len(magic) + sha256.Size
)

// Dir is a Store in a folder that this process holds. It may be used by several goroutines.
type Dir struct {
	path  string
	id    string // what all values belong to
	held  *os.File
	mu    sync.Mutex
	whole map[string]bool // values that have been checked, or were written here
	// damaged are the names of values that were removed, as their contents were not what had been written.
	damaged []string
}

// OtherRunError says that a folder belongs to a run of something else.
type OtherRunError struct {
	Path string
	What []string // that differs
}

func (e *OtherRunError) Error() string {
	return fmt.Sprintf("%s: holds the work of a run with another %s: take that again, or another folder, or remove this one to start over",
		e.Path, strings.Join(e.What, ", another "))
}

// OpenDir returns the store in a folder, which is made if it is absent, for a run that depends on parts. It is an error if the
// folder holds anything else, belongs to another run (*OtherRunError), or if another process works in it. What killed
// processes have not finished is removed.
func OpenDir(path string, parts []Part) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("the work folder: %w", err)
	}
	atomicfile.Sweep(path)
	file := filepath.Join(path, runName)
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		if err := begin(path, parts); err != nil {
			return nil, err
		}
	}
	held, ok, err := atomicfile.Hold(file)
	for range 10 { // Look holds it for a moment
		if ok || err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
		held, ok, err = atomicfile.Hold(file)
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("the work folder: %w", err)
	case !ok:
		return nil, fmt.Errorf("%s: another process works in this folder", path)
	}
	r, err := readRun(path)
	if err == nil {
		if what := differing(r.Parts, parts); len(what) > 0 {
			err = &OtherRunError{path, what}
		}
	}
	if err != nil {
		held.Close()
		return nil, err
	}
	return &Dir{path: path, id: identity(parts), held: held, whole: map[string]bool{}}, nil
}

// begin makes a run's folder of an empty one.
func begin(path string, parts []Part) error {
	list, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("the work folder: %w", err)
	}
	if len(list) > 0 {
		return fmt.Errorf("%s: holds %q, which no run has put there: give an empty folder, or one that is not there yet", path, list[0].Name())
	}
	return writeJSON(filepath.Join(path, runName), run{format, parts})
}

func readRun(path string) (*run, error) {
	b, err := os.ReadFile(filepath.Join(path, runName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no run has worked in this folder: it has no %s", path, runName)
	}
	if err != nil {
		return nil, err
	}
	var r run
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w: remove the folder to start over", filepath.Join(path, runName), err)
	}
	if r.Format != format {
		return nil, fmt.Errorf("%s: is of format %d, this llmq writes %d", filepath.Join(path, runName), r.Format, format)
	}
	return &r, nil
}

// differing lists what is not the same of two runs.
func differing(a, b []Part) (what []string) {
	for _, p := range b {
		if !slices.Contains(a, p) {
			what = append(what, p.What)
		}
	}
	for _, p := range a {
		if !slices.ContainsFunc(b, func(o Part) bool { return o.What == p.What }) {
			what = append(what, p.What)
		}
	}
	return what
}

func identity(parts []Part) string {
	return Digest(func(w io.Writer) { json.NewEncoder(w).Encode(parts) })
}

// Path is the folder's.
func (d *Dir) Path() string { return d.path }

// Damaged lists the values that were found damaged, and removed.
func (d *Dir) Damaged() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.damaged)
}

// Close lets others work in the folder. What it holds stays.
func (d *Dir) Close() error {
	if d.held == nil { // as JoinDir opens it
		return nil
	}
	return d.held.Close()
}

func (d *Dir) file(name string) string { return filepath.Join(d.path, name+valueSuffix) }

// hash begins the digest of a value.
func (d *Dir) hash(name string) hash.Hash {
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s\n", d.id, name)
	return h
}

// Names implements Store.
func (d *Dir) Names() ([]string, error) {
	list, err := os.ReadDir(d.path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range list {
		if name, ok := strings.CutSuffix(e.Name(), valueSuffix); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// Delete implements Store.
func (d *Dir) Delete(names ...string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, name := range names {
		delete(d.whole, name)
		if err := os.Remove(d.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Open implements Store.
func (d *Dir) Open(name string) (io.ReadCloser, error) {
	f, err := d.open(name)
	if err != nil {
		return nil, err
	}
	size, err := d.check(name, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if size < 0 {
		f.Close()
		if err := d.Delete(name); err != nil {
			return nil, err
		}
		d.mu.Lock()
		d.damaged = append(d.damaged, name)
		d.mu.Unlock()
		return nil, fmt.Errorf("%s: is not what was written there: %w", d.file(name), fs.ErrNotExist)
	}
	return struct {
		io.Reader
		io.Closer
	}{bufio.NewReaderSize(io.NewSectionReader(f, 0, size), int(min(bufferBytes, size+1))), f}, nil
}

// check returns the size of a value's contents, −1 if they are not what was written.
func (d *Dir) check(name string, f *os.File) (size int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if size = info.Size() - int64(trailerSize); size < 0 || !info.Mode().IsRegular() {
		return -1, nil
	}
	d.mu.Lock()
	whole := d.whole[name]
	d.mu.Unlock()
	if whole {
		return size, nil
	}
	h := d.hash(name)
	if _, err := io.CopyBuffer(h, io.NewSectionReader(f, 0, size), make([]byte, min(bufferBytes, size+1))); err != nil {
		return 0, err
	}
	trailer := make([]byte, trailerSize)
	if _, err := f.ReadAt(trailer, size); err != nil {
		return 0, err
	}
	if !bytes.Equal(trailer, append([]byte(magic), h.Sum(nil)...)) {
		return -1, nil
	}
	d.mu.Lock()
	d.whole[name] = true
	d.mu.Unlock()
	return size, nil
}

// bufferBytes is how much is read or written at a time: enough for writes to go past the page cache.
const bufferBytes = 4 << 20

// smallBytes is what there is room for at first.
const smallBytes = 64 << 10

// dirWriter is a value on its way to the disk.
type dirWriter struct {
	d    *Dir
	name string
	f    *atomicfile.File
	h    hash.Hash
	buf  []byte
	off  int64
}

// Create implements Store.
func (d *Dir) Create(name string) (Writer, error) {
	return d.create(name, atomicfile.Options{Overwrite: true})
}

func (d *Dir) create(name string, opt atomicfile.Options) (*dirWriter, error) {
	f, err := atomicfile.Create(d.file(name), 0, opt)
	if err != nil {
		return nil, fmt.Errorf("the work folder: %w", err)
	}
	return &dirWriter{d: d, name: name, f: f, h: d.hash(name), buf: make([]byte, 0, smallBytes)}, nil
}

func (w *dirWriter) Write(p []byte) (int, error) {
	w.h.Write(p)
	return len(p), w.append(p)
}

// append writes bytes that are not hashed.
func (w *dirWriter) append(p []byte) error {
	for len(p) > 0 {
		n := min(len(p), bufferBytes-len(w.buf))
		if n > cap(w.buf)-len(w.buf) { // most values are small
			w.buf = append(make([]byte, 0, bufferBytes), w.buf...)
		}
		w.buf = append(w.buf, p[:n]...)
		p = p[n:]
		if len(w.buf) == bufferBytes {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *dirWriter) flush() error {
	if _, err := w.f.WriteAt(w.buf, w.off); err != nil {
		return fmt.Errorf("the work folder: %w", err)
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

func (w *dirWriter) Commit() error {
	err := w.append(append([]byte(magic), w.h.Sum(nil)...))
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		w.f.Abort()
		return err
	}
	if err := w.f.Commit(); err != nil {
		return fmt.Errorf("the work folder: %w", err)
	}
	w.d.mu.Lock()
	w.d.whole[w.name] = true
	w.d.mu.Unlock()
	return nil
}

func (w *dirWriter) Abort() { w.f.Abort() }

// Note writes down how far the run is, for Look.
func (d *Dir) Note(s *Standing) error {
	return writeJSON(filepath.Join(d.path, progressName), s)
}

func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	f, err := atomicfile.Create(path, int64(len(b)), atomicfile.Options{Overwrite: true})
	if err != nil {
		return fmt.Errorf("the work folder: %w", err)
	}
	defer f.Abort() // no effect after Commit
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("the work folder: %w", err)
	}
	return f.Commit()
}

// Room refuses a folder whose disk has less than so many bytes, those that values take already included.
func (d *Dir) Room(bytes int64) error {
	free, ok := atomicfile.Free(d.path)
	if !ok {
		return nil
	}
	used, err := usage(d.path)
	if err != nil {
		return err
	}
	if needed := bytes - used; needed > 0 && uint64(needed) > free {
		return fmt.Errorf("the work folder %s: needs %d bytes of disk, %d are free", d.path, needed, free)
	}
	return nil
}

// usage is the size of all values in a folder.
func usage(path string) (bytes int64, err error) {
	list, err := os.ReadDir(path)
	for _, e := range list {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), valueSuffix) {
			bytes += info.Size()
		}
	}
	return bytes, err
}

// Overview is what can be seen of a folder without holding it.
type Overview struct {
	Standing           // zero if nothing was noted
	Working  bool      // a process works in it
	Bytes    int64     // of its values
	Noted    time.Time // when the Standing was noted
}

// Look reads how far the run in a folder is.
func Look(path string) (*Overview, error) {
	if _, err := readRun(path); err != nil {
		return nil, err
	}
	o := &Overview{Standing: Standing{LayerSeconds: []float64{}}}
	held, free, err := atomicfile.Hold(filepath.Join(path, runName))
	switch {
	case free:
		held.Close()
	case err == nil:
		o.Working = true
	case !errors.Is(err, fs.ErrPermission): // somebody else's folder may be looked at too
		return nil, err
	}
	if o.Bytes, err = usage(path); err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(path, progressName))
	if errors.Is(err, fs.ErrNotExist) {
		return o, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	o.Noted = info.ModTime()
	if err := json.NewDecoder(f).Decode(&o.Standing); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return o, nil
}
