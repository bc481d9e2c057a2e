package atomicfile

import "os"

// Hold opens an existing file and keeps others from holding it until it is closed, or the process ends, however it ends. ok
// is false while somebody else does. Where the file system has no locks, everybody may.
func Hold(path string) (f *os.File, ok bool, err error) {
	if f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, false, err
	}
	if !claim(f) {
		return nil, false, f.Close()
	}
	return f, true, nil
}

// SameDisk says whether two folders share what is free, as far as that is known.
func SameDisk(a, b string) bool { return sameDisk(a, b) }

// Free is how many bytes an ordinary user may still write in dir; ok is false where that is not known.
func Free(dir string) (bytes uint64, ok bool) { return freeBytes(dir) }
