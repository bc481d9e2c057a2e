package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// maxLinks is how many links may follow each other: Linux's limit (path_resolution(7)).
const maxLinks = 40

// Resolve returns the path, free of links, of the regular file that a plain create of path would write: path itself, or
// what its links lead to, which need not exist as long as its folder does. A path that leads to anything but a regular
// file or nothing is an error: a folder, device, pipe or socket, or an open file that has no name, as under
// /proc/self/fd. Renaming a file into the place of one of these would destroy it, and of a link to one, the link.
func Resolve(path string) (string, error) {
	if path == "" {
		return "", errors.New("no output path")
	}
	fi, err := os.Stat(path) // where a plain create would arrive, through the kernel's own links too
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return resolveAbsent(path)
	case err != nil:
		return "", err
	case !fi.Mode().IsRegular():
		return "", notRegular(path, fi.Mode())
	}
	target, err := filepath.EvalSymlinks(path)
	if err == nil {
		var named fs.FileInfo
		if named, err = os.Lstat(target); err == nil && os.SameFile(fi, named) {
			return target, nil
		}
	}
	return "", fmt.Errorf("%s: leads to an open file that has no name any more", path)
}

// resolveAbsent resolves a path that leads to nothing.
func resolveAbsent(path string) (string, error) {
	target := path
	for range maxLinks {
		// Nothing is cleaned before links are followed: in link/../name the dots mean the folder above what link leads to.
		dir, name := filepath.Split(target)
		if dir == "" {
			dir = "."
		}
		dir, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return "", fmt.Errorf("%s: the folder to write to: %w", path, err)
		}
		if fi, err := os.Stat(dir); err != nil {
			return "", fmt.Errorf("%s: the folder to write to: %w", path, err)
		} else if !fi.IsDir() {
			return "", fmt.Errorf("%s: %s is not a folder", path, dir)
		}
		target = filepath.Join(dir, name)
		fi, err := os.Lstat(target)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return target, nil
		case err != nil:
			return "", err
		case fi.Mode()&fs.ModeSymlink == 0:
			return "", fmt.Errorf("%s: %s appeared meanwhile", path, target)
		}
		next, err := os.Readlink(target)
		if err != nil {
			return "", err
		}
		if !filepath.IsAbs(next) {
			next = dir + string(filepath.Separator) + next
		}
		target = next
	}
	return "", fmt.Errorf("%s: more than %d links", path, maxLinks)
}

// notRegular is the error for a path that leads to something with this mode.
func notRegular(path string, mode fs.FileMode) error {
	kind := "no file"
	switch {
	case mode.IsDir():
		return fmt.Errorf("%s: is a folder", path)
	case mode&fs.ModeSymlink != 0:
		kind = "a link"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a pipe"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	case mode&fs.ModeDevice != 0:
		kind = "a device"
	}
	return fmt.Errorf("%s: %s, not a regular file: an output cannot replace it", path, kind)
}
