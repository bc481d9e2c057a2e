// Package atomicfile writes output files that are either whole or absent: data goes to a hidden file in the same
// folder, which takes the output's name only when all of it is on the disk.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
)

// Options says how to create a file. The zero value refuses to replace one.
type Options struct {
	// Overwrite allows an existing regular file to be replaced, at the very end.
	Overwrite bool
	// Fleeting: the file need not outlast the system. After a power cut its name may have other contents.
	Fleeting bool
}

// File is an output being written. Writes may come from several goroutines.
type File struct {
	path   string
	tmp    string
	f      *os.File
	direct direct
	opt    Options
	stays  bool  // it is Resume's
	staged *File // its copy on the disk that it is for: see stage

	mu   sync.Mutex
	done bool // committed or aborted
}

// unfinished are the temporary files and folders that exist. abandoned says that the process is about to end.
var (
	mu         sync.Mutex
	unfinished = map[string]bool{}
	abandoned  bool
)

// Names of temporary files: tempPrefix, 26 random letters and digits, tempSuffix. See asidePrefix for one more.
const (
	tempPrefix = ".llmq-"
	tempSuffix = ".tmp"
)

// tempName is a new one in dir.
func tempName(dir string) string { return filepath.Join(dir, tempPrefix+rand.Text()+tempSuffix) }

// createTemp makes a temporary file that Abandon knows of, and claims it, so that Sweep in another process leaves it alone.
func createTemp(dir string) (*os.File, error) {
	mu.Lock()
	defer mu.Unlock()
	if abandoned {
		return nil, errEnding
	}
	for {
		f, err := os.OpenFile(tempName(dir), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return nil, err
		}
		if claim(f) {
			unfinished[f.Name()] = true
			return f, nil
		}
		f.Close() // another process's Sweep came between the two, and has removed it
	}
}

var errEnding = errors.New("the process is about to end")

// forget says that a temporary file has gone.
func forget(tmp string) {
	mu.Lock()
	defer mu.Unlock()
	delete(unfinished, tmp)
}

// Abandon removes the temporary files of all outputs that are under way, which cannot be committed any more, and
// no new one can be created. It is for a process that must end without waiting for those who write.
func Abandon() {
	mu.Lock()
	defer mu.Unlock()
	abandoned = true
	for tmp := range unfinished {
		os.RemoveAll(tmp)
	}
}

// Create starts an output of size bytes. It refuses what Resolve does, an existing file without Overwrite, and a disk that
// has not got the room, before anything is written. Bytes that are never written are zero.
func Create(path string, size int64, opt Options) (*File, error) {
	target, err := Resolve(path)
	if err != nil {
		return nil, err
	}
	path = target
	if err := checkTarget(path, opt); err != nil {
		return nil, err
	}
	dir := filepath.Dir(path)
	if free, ok := freeBytes(dir); ok && uint64(size) > free {
		return nil, fmt.Errorf("%s: needs %d bytes of disk, %d are free", path, size, free)
	}
	f, err := createTemp(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, cause(err))
	}
	return start(&File{path: path, tmp: f.Name(), f: f, opt: opt}, size)
}

// start makes room for a file that is open.
func start(w *File, size int64) (*File, error) {
	if !w.opt.Fleeting { // those are soon read, often by another process, and removed before they need be on the disk
		w.direct = openDirect(w.tmp)
	}
	// Setting the size now lets a file system that cannot hold such a file say so before the work is done. What is made over several processes
	// outlasts a full disk, and takes room as it is written.
	set := reserve
	if w.stays {
		set = (*os.File).Truncate
	}
	if err := set(w.f, size); err != nil {
		w.Abort()
		return nil, fmt.Errorf("%s: cannot make a file of %d bytes: %w", w.path, size, err)
	}
	return w, nil
}

// checkTarget is for a path that Resolve returned. What is there may have changed since.
func checkTarget(path string, opt Options) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return notRegular(path, fi.Mode())
	case !opt.Overwrite:
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	return nil
}

// Temp is the name that the file has until Commit or Abort.
func (w *File) Temp() string { return w.tmp }

// WriteAt writes p at byte off.
func (w *File) WriteAt(p []byte, off int64) (int, error) {
	begin, end, err := w.direct.writeAt(p, off)
	if err == nil && begin > 0 {
		_, err = w.f.WriteAt(p[:begin], off)
	}
	if err == nil {
		_, err = w.f.WriteAt(p[end:], off+int64(end))
	}
	if err != nil {
		return 0, fmt.Errorf("%s: writing %d bytes at %d: %w", w.path, len(p), off, cause(err))
	}
	return len(p), nil
}

// cause drops the temporary file's name from an error, which would only confuse.
func cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// Abort gives the output up and leaves nothing behind, but for what Resume goes on with. After Commit or another Abort it does nothing.
func (w *File) Abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done {
		return
	}
	w.done = true
	defer forget(w.tmp)
	w.direct.close()
	w.f.Close()
	w.discard()
}

// discard removes the temporary file, unless it is to stay.
func (w *File) discard() {
	if !w.stays {
		os.Remove(w.tmp)
	}
}

// Same reports whether two paths lead to the same existing file.
func Same(a, b string) bool {
	fa, err := os.Stat(a)
	if err != nil {
		return false
	}
	fb, err := os.Stat(b)
	return err == nil && os.SameFile(fa, fb)
}
