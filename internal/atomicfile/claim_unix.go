//go:build linux || darwin

package atomicfile

import (
	"os"

	"golang.org/x/sys/unix"
)

// claim locks a temporary file that was just created until it is closed: flock(2), which the kernel gives up when the
// process ends, however it ends. It returns false if another process's Sweep was faster. On a file system without locks
// the file stays unclaimed, and a Sweep there cannot lock it either.
func claim(f *os.File) bool {
	if err := lock(f); err == unix.EWOULDBLOCK {
		return false
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink > 0
}

// removeAbandoned removes a temporary file that nobody has claimed, and says whether it did.
func removeAbandoned(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0) // NFS locks what may be written only
	if err != nil {
		return false
	}
	defer f.Close() // after it has gone, so that nobody can claim it meanwhile
	if lock(f) != nil {
		return false
	}
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	if err != nil || !os.SameFile(opened, named) {
		return false
	}
	return os.Remove(path) == nil
}

func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for err == unix.EINTR {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	return err
}
