package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/llmq/llmq/internal/atomicfile"
)

// Dir is a Folder on a disk.
type Dir struct {
	*values
	folder folder
	held   *os.File // nil as JoinDir opens it
}

// OpenDir returns the store in a folder, which is made if it is absent, for a run that depends on parts. It is an error if the
// folder holds anything else, belongs to another run (*OtherRunError), or if another process works in it. What killed
// processes have not finished is removed.
func OpenDir(path string, parts []Part) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("the work folder: %w", err)
	}
	atomicfile.Sweep(path)
	f := folder(path)
	if err := begin(f, parts); err != nil {
		return nil, err
	}
	held, ok, err := atomicfile.Hold(f.file(runName))
	for range 10 { // Look holds it for a moment
		if ok || err != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
		held, ok, err = atomicfile.Hold(f.file(runName))
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("the work folder: %w", err)
	case !ok:
		return nil, fmt.Errorf("%s: another process works in this folder", path)
	}
	if err := belongs(f, parts); err != nil {
		return nil, errors.Join(err, held.Close())
	}
	return &Dir{values: newValues(f, parts), folder: f, held: held}, nil
}

// JoinDir opens the folder of a run that another process holds, to put values there and to read them.
func JoinDir(path string) (*Dir, error) {
	f := folder(path)
	r, err := readRun(f)
	if err != nil {
		return nil, err
	}
	return &Dir{values: newValues(f, r.Parts), folder: f}, nil
}

// lookDir reads how far the run in a folder is.
func lookDir(path string) (*Overview, error) {
	f := folder(path)
	return look(f, func() (bool, error) {
		held, free, err := atomicfile.Hold(f.file(runName))
		switch {
		case free:
			return false, held.Close()
		case err == nil:
			return true, nil
		case errors.Is(err, fs.ErrPermission): // somebody else's folder may be looked at too
			return false, nil
		}
		return false, err
	})
}

// Close implements Folder.
func (d *Dir) Close() error {
	if d.held == nil {
		return nil
	}
	return d.held.Close()
}

// Room implements Folder.
func (d *Dir) Room(bytes int64) error {
	free, ok := atomicfile.Free(d.Path())
	if !ok {
		return nil
	}
	list, err := d.list()
	if err != nil {
		return err
	}
	needed := bytes
	for _, i := range list {
		switch {
		case filepath.Ext(i.name) == valueSuffix:
			needed -= i.size
		case isPartial(i.name):
			if info, err := os.Stat(d.folder.file(i.name)); err == nil {
				needed -= atomicfile.Allocated(info)
			}
		}
	}
	if needed > 0 && uint64(needed) > free {
		return fmt.Errorf("the work folder %s: needs %d bytes of disk, %d are free", d.Path(), needed, free)
	}
	return nil
}

// partialInfix is in the names of partial outputs: one that is split has more files.
const partialInfix = ".partial"

// Partial is the path of a file in which a run may make its output, to go on with what is there after it was cut off, and which takes
// that output's name in the end. What it holds, values say: nothing else checks it.
func (d *Dir) Partial(name string) string { return d.folder.file(name + partialInfix) }

// RemovePartials removes the files of Partial whose names begin with prefix.
func (d *Dir) RemovePartials(prefix string) error {
	list, err := d.list()
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range list {
		if strings.HasPrefix(i.name, prefix) && isPartial(i.name) {
			errs = append(errs, d.remove(i.name))
		}
	}
	return errors.Join(errs...)
}

func isPartial(name string) bool {
	_, rest, ok := strings.Cut(name, partialInfix)
	return ok && (rest == "" || rest[0] == '-')
}

// file is the path of a value.
func (d *Dir) file(name string) string { return d.folder.file(name + valueSuffix) }

// folder is the files in a folder of a disk.
type folder string

func (f folder) Path() string { return string(f) }

func (f folder) file(name string) string { return filepath.Join(string(f), name) }

func (f folder) list() ([]info, error) {
	entries, err := os.ReadDir(string(f))
	if err != nil {
		return nil, fmt.Errorf("the work folder: %w", err)
	}
	var list []info
	for _, e := range entries {
		i, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has been removed since
		}
		if err != nil {
			return nil, fmt.Errorf("the work folder: %w", err)
		}
		list = append(list, info{e.Name(), i.Size(), i.ModTime()})
	}
	return list, nil
}

func (f folder) remove(name string) error {
	if err := os.Remove(f.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the work folder: %w", err)
	}
	return nil
}

func (f folder) read(name string) (content, error) {
	file, err := os.Open(f.file(name))
	if errors.Is(err, fs.ErrNotExist) {
		// Over NFS another machine's may be there though a look at its name a moment ago, which the system remembers, says that it
		// is not: until the folder is opened.
		if d, err := os.Open(f.Path()); err == nil {
			d.Close()
		}
		file, err = os.Open(f.file(name))
	}
	if err != nil {
		return nil, fmt.Errorf("the work folder: %w", err)
	}
	i, err := file.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the work folder: %w", err), file.Close())
	}
	c := diskFile{file, i.Size()}
	if !i.Mode().IsRegular() {
		c.bytes = -1
	}
	return c, nil
}

// diskFile is a file of a folder.
type diskFile struct {
	*os.File
	bytes int64
}

func (f diskFile) size() int64                { return f.bytes }
func (f diskFile) unsure() bool               { return false }
func (f diskFile) reader() (io.Reader, error) { return io.NewSectionReader(f.File, 0, f.bytes), nil }

func (f diskFile) end(n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := f.ReadAt(b, f.bytes-n); err != nil {
		return nil, fmt.Errorf("the work folder: %w", err)
	}
	return b, nil
}

// smallBytes is what a writer has room for at first: most values are small.
const smallBytes = 64 << 10

// diskWriter writes a file in pieces of bufferBytes.
type diskWriter struct {
	f   *atomicfile.File
	buf []byte
	off int64
}

func (f folder) create(name string, size int64, opt creation) (Writer, error) {
	file, err := atomicfile.Create(f.file(name), size, atomicfile.Options{Overwrite: opt.replace, Fleeting: opt.fleeting})
	if err != nil {
		return nil, fmt.Errorf("the work folder: %w", err)
	}
	return &diskWriter{f: file, buf: make([]byte, 0, smallBytes)}, nil
}

func (w *diskWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, bufferBytes-len(w.buf))
		if n > cap(w.buf)-len(w.buf) {
			w.buf = append(make([]byte, 0, bufferBytes), w.buf...)
		}
		w.buf = append(w.buf, p[done:done+n]...)
		done += n
		if len(w.buf) == bufferBytes {
			if err := w.flush(); err != nil {
				return done, err
			}
		}
	}
	return len(p), nil
}

func (w *diskWriter) flush() error {
	if _, err := w.f.WriteAt(w.buf, w.off); err != nil {
		return fmt.Errorf("the work folder: %w", err)
	}
	w.off += int64(len(w.buf))
	w.buf = w.buf[:0]
	return nil
}

func (w *diskWriter) Commit() error {
	if err := w.flush(); err != nil {
		w.f.Abort()
		return err
	}
	if err := w.f.Commit(); err != nil {
		return fmt.Errorf("the work folder: %w", err)
	}
	return nil
}

func (w *diskWriter) Abort() { w.f.Abort() }
