package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Commit puts the file in its place once its bytes are on the disk. When it fails, nothing is left behind and what was
// there before is untouched; the one exception is a failure to make the rename itself durable. No write may be under
// way.
func (w *File) Commit() error { return Commit(w) }

// Commit is File.Commit for several files of which none is of use without the others, and the first is the one that readers
// open: it takes its place last. When that fails half-way, or the process ends, the first file is absent: those that were
// to be replaced may be gone by then, but old and new files are never taken for one set.
func Commit(files ...*File) error {
	for _, w := range files {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.done {
			return fmt.Errorf("%s: already closed", w.path)
		}
	}
	var err error
	for _, w := range files {
		defer forget(w.tmp)
		defer w.unstage()
		err = errors.Join(err, w.finish())
	}
	for _, w := range files {
		if err == nil {
			err = w.stage()
		}
	}
	if err == nil {
		err = place(files)
	}
	if err != nil {
		for _, w := range files {
			w.discard()
		}
		return err
	}
	var dirs []string
	for _, w := range files {
		if dir := filepath.Dir(w.path); !w.opt.Fleeting && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
			err = errors.Join(err, syncDir(dir))
		}
	}
	for _, w := range files {
		if err == nil && w.staged != nil { // what it was copied from
			err = os.Remove(w.tmp)
		}
	}
	return err
}

// finish has the bytes on the disk, and ends writing.
func (w *File) finish() error {
	w.done = true
	w.direct.close()
	var err error
	if !w.opt.Fleeting {
		err = w.f.Sync()
	}
	if cerr := w.f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", w.path, cause(err))
	}
	return nil
}

// place renames the files, or leaves none in its place.
func place(files []*File) error {
	for _, w := range files { // something may have appeared meanwhile
		if err := checkTarget(w.path, w.opt); err != nil {
			return err
		}
	}
	if len(files) > 1 {
		if err := os.Remove(files[0].path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for i, w := range slices.Backward(files) {
		if err := w.rename(); err != nil {
			for _, placed := range files[i+1:] {
				placed.takeBack()
			}
			return err
		}
	}
	return nil
}

// rename gives the file its name.
func (w *File) rename() error {
	if w.staged != nil {
		return os.Rename(w.staged.tmp, w.path)
	}
	return os.Rename(w.tmp, w.path)
}

// takeBack undoes rename: what Resume is to go on with stays.
func (w *File) takeBack() {
	if w.stays && w.staged == nil {
		os.Rename(w.path, w.tmp)
		return
	}
	os.Remove(w.path)
}

// stage copies a file of Resume's to the disk that it is for, if that is another one, beside the place that it will take.
func (w *File) stage() error {
	if !w.stays || renames(filepath.Dir(w.tmp), filepath.Dir(w.path)) {
		return nil
	}
	from, err := os.Open(w.tmp)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	to, err := Create(w.path, info.Size(), w.opt)
	if err != nil {
		return err
	}
	w.staged = to
	buf := make([]byte, 4<<20)
	for off := int64(0); off < info.Size(); {
		n, err := from.ReadAt(buf[:min(int64(len(buf)), info.Size()-off)], off)
		if err != nil {
			return err
		}
		if _, err := to.WriteAt(buf[:n], off); err != nil {
			return err
		}
		off += int64(n)
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	return to.finish()
}

// unstage removes the copy, unless that has its name, and forgets it.
func (w *File) unstage() {
	if w.staged != nil {
		w.staged.Abort() // no effect after finish
		os.Remove(w.staged.tmp)
		forget(w.staged.tmp)
	}
}

// renames says whether a file can be renamed from one folder to another: few systems say in the same way that it is on another disk.
func renames(from, to string) bool {
	f, err := os.OpenFile(tempName(from), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return false
	}
	f.Close()
	probe := tempName(to)
	err = os.Rename(f.Name(), probe)
	if err != nil {
		probe = f.Name()
	}
	os.Remove(probe)
	return err == nil
}
