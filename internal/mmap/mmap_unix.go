//go:build linux || darwin

package mmap

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

func mapFile(f *os.File, size int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
}

func unmap(data []byte) error { return unix.Munmap(data) }

// Release tells the kernel that the pages which lie wholly inside b, a part of Data, need not stay resident. They come
// back from the file when they are read again.
func (m *Map) Release(b []byte) {
	if len(b) == 0 || len(m.Data) == 0 {
		return
	}
	// When b lies before Data, the difference wraps and is larger than any file.
	lo := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(m.Data)))
	hi := lo + uintptr(len(b))
	if lo > hi || hi > uintptr(len(m.Data)) {
		return
	}
	page := uintptr(os.Getpagesize())
	lo = (lo + page - 1) / page * page
	hi = hi / page * page
	if lo < hi {
		_ = unix.Madvise(m.Data[lo:hi], unix.MADV_DONTNEED) // advice: nothing depends on its being taken
	}
}
