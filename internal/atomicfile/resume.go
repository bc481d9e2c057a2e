package atomicfile

import (
	"fmt"
	"os"
	"path/filepath"
)

// Resume is Create for an output that is made over several processes, in the file partial, which Abort leaves: the next process goes on
// with what is there. No two may do so at a time. The partial file may lie in another folder, or on another disk, from where Commit
// copies it. It takes room as it is written, which the disk must have when it begins. What it holds is the caller's to check: after a power cut that is what Sync had on the disk, and anything else.
func Resume(path, partial string, size int64, opt Options) (*File, error) {
	path, err := Resolve(path)
	if err != nil {
		return nil, err
	}
	if err := checkTarget(path, opt); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*File, error) {
		f.Close()
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return fail(err)
	case !info.Mode().IsRegular():
		return fail(notRegular(partial, info.Mode()))
	}
	needed := map[string]int64{filepath.Dir(partial): max(0, size-Allocated(info))}
	if dir := filepath.Dir(path); !sameDisk(filepath.Dir(partial), dir) {
		needed[dir] = size
	}
	for dir, bytes := range needed {
		if free, ok := freeBytes(dir); ok && uint64(bytes) > free {
			return fail(fmt.Errorf("%s: needs %d bytes of disk, %d are free in %s", path, bytes, free, dir))
		}
	}
	return start(&File{path: path, tmp: partial, f: f, opt: opt, stays: true}, size)
}

// ReadAt reads what was written to an output that is Resume's, by this process or an earlier one.
func (w *File) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// Sync has what was written on the disk, for a Resume after a power cut.
func (w *File) Sync() error {
	if err := w.f.Sync(); err != nil {
		return fmt.Errorf("%s: %w", w.path, cause(err))
	}
	return nil
}
