package atomicfile

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Folder is an output of several files that appears as a whole: they are written into a hidden folder beside it, which takes the
// output's name when all of them are on the disk.
type Folder struct {
	path string
	tmp  string
	ours func(dir string) error
	lock *os.File // in tmp: claimed, so that Sweep in another process leaves the folder alone
	opt  Options
	done bool
}

// lockName is of a file in a temporary folder.
const lockName = ".lock"

// CreateFolder starts an output of size bytes in all. Without Overwrite it refuses a folder that holds anything; with it, one that
// ours finds fault with, so that no folder of another kind is ever replaced. It refuses what is no
// folder, and a disk that has not got the room.
func CreateFolder(path string, size int64, ours func(dir string) error, opt Options) (*Folder, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if _, err := Recover(path); err != nil {
		return nil, err
	}
	if err := CheckFolder(path, ours, opt.Overwrite); err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // what a link leads to is replaced, not the link
	}
	dir := filepath.Dir(path)
	if free, ok := freeBytes(dir); ok && uint64(size) > free {
		return nil, fmt.Errorf("%s: needs %d bytes of disk, %d are free", path, size, free)
	}
	mu.Lock()
	defer mu.Unlock()
	if abandoned {
		return nil, errors.New("the process is about to end")
	}
	tmp := tempName(dir)
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return nil, fmt.Errorf("%s: %w", path, cause(err))
	}
	lock, err := os.OpenFile(filepath.Join(tmp, lockName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		os.RemoveAll(tmp)
		return nil, fmt.Errorf("%s: %w", path, cause(err))
	}
	claim(lock) // in a folder of a random name: nobody else has been there
	unfinished[tmp] = true
	return &Folder{path: path, tmp: tmp, ours: ours, lock: lock, opt: opt}, nil
}

// Recover brings back what a Commit to path had moved aside when it was killed, before the new folder took its place. It returns where
// the old one was, or "". Where there is something in the place, nothing is moved, and no file of anybody's is removed anywhere.
func Recover(path string) (from string, err error) {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	if path, err = resolveAbsent(path); err != nil { // a link leads to where the folder was
		return "", err
	}
	dir := filepath.Dir(path)
	entries, _ := os.ReadDir(dir) // a folder that cannot be read is an error soon enough
	for _, e := range entries {
		writer, ok := strings.CutPrefix(e.Name(), asidePrefix(path))
		if !ok || !e.IsDir() {
			continue
		}
		from = filepath.Join(dir, e.Name())
		if replaced(from, writer) {
			continue
		}
		lock, _, err := Hold(filepath.Join(dir, tempPrefix+writer, lockName))
		switch {
		case err == nil && lock == nil:
			continue // its writer lives, and is between two renames
		case lock != nil:
			defer lock.Close()
		}
		return from, putBack(from, path)
	}
	return "", nil
}

// putBack undoes moveAside.
func putBack(old, path string) error {
	os.Remove(filepath.Join(old, lockName))
	return os.Rename(old, path)
}

// replaced says whether the new folder has taken the place of what moveAside left in old: it has its temporary name no more.
func replaced(old, writer string) bool {
	_, err := os.Lstat(filepath.Join(filepath.Dir(old), tempPrefix+writer))
	_, unmarked := os.Lstat(filepath.Join(old, lockName)) // who could not put it back has removed the mark, and then the new folder
	return errors.Is(err, fs.ErrNotExist) && unmarked == nil
}

// committing says whether a folder of a temporary name is one of the two of a Commit between its renames, which may have been killed
// there: the old folder set aside, or the new one. Recover goes by both.
func committing(dir, name string) bool {
	id := strings.TrimPrefix(name, tempPrefix)
	if _, writer, aside := strings.Cut(id, "-"); aside {
		return !replaced(filepath.Join(dir, name), writer)
	}
	entries, _ := os.ReadDir(dir)
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		other, ok := strings.CutPrefix(e.Name(), tempPrefix)
		return ok && strings.HasSuffix(other, "-"+id)
	})
}

// asidePrefix begins the name of what Commit moves out of the place of path. The rest is that of the temporary folder's after
// tempPrefix. The name is hidden and as long for every path: a digest stands for the path's own.
func asidePrefix(path string) string {
	sum := sha256.Sum256([]byte(filepath.Base(path)))
	return fmt.Sprintf("%s%x-", tempPrefix, sum[:8])
}

// CheckFolder says why a folder cannot be written to path: see CreateFolder.
func CheckFolder(path string, ours func(dir string) error, overwrite bool) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return fmt.Errorf("%s: a link that leads nowhere", path)
		}
		_, err := os.Stat(filepath.Dir(path))
		return err
	}
	if err != nil {
		if info, e := os.Stat(path); e == nil && !info.IsDir() {
			return fmt.Errorf("%s: is no folder", path)
		}
		return err
	}
	if len(entries) == 0 {
		return nil
	}
	if !overwrite {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	if err := ours(path); err != nil {
		return fmt.Errorf("%s: %w: it is not replaced", path, err)
	}
	return nil
}

// Dir is the folder to write into until Commit or Abort.
func (w *Folder) Dir() string { return w.tmp }

// Commit puts the folder in its place. All its files must be closed, and on the disk. When it fails, what was there before is there
// still, and nothing else is left behind.
func (w *Folder) Commit() error {
	if w.done {
		return fmt.Errorf("%s: already closed", w.path)
	}
	err := CheckFolder(w.path, w.ours, w.opt.Overwrite) // something may have appeared meanwhile
	if err == nil {
		err = w.place()
	}
	if err != nil {
		w.Abort()
		return err
	}
	w.done = true
	forget(w.tmp)
	return syncDir(filepath.Dir(w.path))
}

// release gives the lock up, which is in dir.
func (w *Folder) release(dir string) {
	if w.lock != nil {
		w.lock.Close()
		os.Remove(filepath.Join(dir, lockName))
		w.lock = nil
	}
}

// place renames the folder into the place of an old one, if there is one, which is removed then.
func (w *Folder) place() error {
	if err := syncDir(w.tmp); err != nil {
		return err
	}
	old, err := w.replace()
	if err != nil {
		return err
	}
	w.release(w.path)
	if old == "" {
		return nil
	}
	gone := tempName(filepath.Dir(w.path))
	if err := os.Rename(old, gone); err != nil && !errors.Is(err, fs.ErrNotExist) { // another process's Sweep may have come first
		return err
	}
	return os.RemoveAll(gone) // Recover never finds part of a folder
}

// replace renames the folder into its place, and returns where what was there is now, or "". Abandon waits for both renames: it would
// remove the new folder between them, and what was there before would count as replaced.
func (w *Folder) replace() (old string, err error) {
	mu.Lock()
	defer mu.Unlock()
	if abandoned {
		return "", errEnding
	}
	if old, err = w.moveAside(); err != nil {
		return "", err
	}
	if runtime.GOOS == "windows" {
		w.release(w.tmp) // no folder with open files can be renamed there
	}
	if err = os.Rename(w.tmp, w.path); err == nil {
		return old, nil
	}
	if old != "" {
		if back := putBack(old, w.path); back != nil { // Recover does it later, and goes by the new folder
			w.done = true
			w.release(w.tmp)
			delete(unfinished, w.tmp)
			err = errors.Join(err, back)
		}
	}
	return "", err
}

// moveAside makes room for the folder, and returns where what was in its place is now, or "". What it has marked is replaced
// from the moment on at which the new folder leaves its temporary name: Recover does not bring it back then, and Sweep finishes,
// should this process be killed.
func (w *Folder) moveAside() (old string, err error) {
	if err := os.Remove(w.path); err == nil || errors.Is(err, fs.ErrNotExist) { // an empty folder goes
		return "", nil
	}
	old = filepath.Join(filepath.Dir(w.path), asidePrefix(w.path)+strings.TrimPrefix(filepath.Base(w.tmp), tempPrefix))
	if err := os.Rename(w.path, old); err != nil {
		return "", err
	}
	os.WriteFile(filepath.Join(old, lockName), nil, 0o644) // a folder that cannot be marked could not be removed either
	return old, nil
}

// Abort gives the output up and leaves nothing behind. After Commit or another Abort it does nothing.
func (w *Folder) Abort() {
	if w.done {
		return
	}
	w.done = true
	defer forget(w.tmp)
	w.release(w.tmp)
	os.RemoveAll(w.tmp)
}
