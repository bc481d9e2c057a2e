//go:build linux || darwin

package mmap

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// views: Data is the file, not a copy of it.
const views = true

func mapFile(f *os.File, size int) ([]byte, error) {
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
}

func unmap(data []byte) error { return unix.Munmap(data) }

// Release tells the kernel that the pages which lie wholly inside b, a part of Data, need not stay resident, and are the
// first to take when memory is short. They come back from the file when they are read again.
func (m *Map) Release(b []byte) {
	if pages := m.pages(b, true); pages != nil {
		// Advice: nothing depends on its being taken.
		cool(pages)
		_ = unix.Madvise(pages, unix.MADV_DONTNEED)
	}
}

// Rest takes the pages which lie wholly inside b, a part of Data, out of what counts as this process's memory. They stay in the
// system's, as those used lately, so that to read them again costs next to nothing. Of a file that is not all there nothing is done.
func (m *Map) Rest(b []byte) {
	if m.filler != nil {
		return
	}
	if pages := m.pages(b, true); pages != nil {
		_ = unix.Madvise(pages, unix.MADV_DONTNEED)
	}
}

// ReadAhead tells the kernel that b, a part of Data, will be read soon, and does not wait for it.
func (m *Map) ReadAhead(b []byte) {
	if m.filler != nil {
		return // what is not there comes when it is needed
	}
	if pages := m.pages(b, false); pages != nil {
		_ = unix.Madvise(pages, unix.MADV_WILLNEED)
	}
}

// pages returns the pages that lie inside b, wholly or also in part; nil if there are none or b is not a part of Data.
func (m *Map) pages(b []byte, wholly bool) []byte {
	if len(b) == 0 || len(m.Data) == 0 {
		return nil
	}
	// When b lies before Data, the difference wraps and is larger than any file.
	lo := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(m.Data)))
	hi := lo + uintptr(len(b))
	if lo > hi || hi > uintptr(len(m.Data)) {
		return nil
	}
	page := uintptr(os.Getpagesize())
	if wholly {
		lo = (lo + page - 1) / page * page
		hi = hi / page * page
	} else {
		lo = lo / page * page
	}
	if lo >= hi {
		return nil
	}
	return m.Data[lo:hi]
}
