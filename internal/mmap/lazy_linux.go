package mmap

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OpenLazy maps a file of which only the first bytes are there. What is read of the others without Need having brought it is
// a fault, as of a file that was cut off (Guard): never zeros.
func OpenLazy(path string, first int64, filler Filler) (*Map, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	m, err := open(path, f)
	if err == nil && m.file == nil {
		err = fmt.Errorf("%s: an empty file", path)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	m.filler = filler
	if err = m.Forbid(0, int64(len(m.Data))); err == nil {
		err = m.allow(0, first)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// offsets are those of b, a part of Data.
func (m *Map) offsets(b []byte) (lo, hi int64) {
	lo = int64(uintptr(unsafe.Pointer(unsafe.SliceData(b))) - uintptr(unsafe.Pointer(unsafe.SliceData(m.Data))))
	return lo, lo + int64(len(b))
}

// allow lets the pages be read that bytes lo to hi lie on.
func (m *Map) allow(lo, hi int64) error {
	if pages := m.pages(m.Data[lo:hi], false); pages != nil {
		return unix.Mprotect(pages, unix.PROT_READ)
	}
	return nil
}

// Forbid makes a fault of reading the pages that lie wholly inside bytes lo to hi, which have gone.
func (m *Map) Forbid(lo, hi int64) error {
	if pages := m.pages(m.Data[lo:hi], true); pages != nil {
		return unix.Mprotect(pages, unix.PROT_NONE)
	}
	return nil
}
