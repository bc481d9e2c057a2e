//go:build !linux && !darwin

package atomicfile

import "os"

// freeBytes is not known here; running out of room is noticed by the write that fails.
func freeBytes(string) (n uint64, ok bool) { return 0, false }

// Allocated is how much of the disk a file takes, where holes are not known: its size.
func Allocated(info os.FileInfo) int64 { return info.Size() }

func sameDisk(string, string) bool { return false }

// syncDir is not needed or not possible here.
func syncDir(string) error { return nil }
