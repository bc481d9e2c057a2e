//go:build !linux && !darwin

package atomicfile

// freeBytes is not known here; running out of room is noticed by the write that fails.
func freeBytes(string) (n uint64, ok bool) { return 0, false }

func sameDisk(string, string) bool { return false }

// syncDir is not needed or not possible here.
func syncDir(string) error { return nil }
