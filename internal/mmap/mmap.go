// Package mmap gives read-only views of whole files, so that reading a tensor copies nothing.
//
// On Linux and macOS a view is a memory map: its pages are read when they are touched, and the kernel may take them
// back. Elsewhere the file is read into memory. A file must not be truncated while it is mapped.
package mmap

import (
	"fmt"
	"math"
	"os"
)

// Map is a view of a file.
type Map struct {
	// Data is the file's content. It must not be written to, and must not be used after Close.
	Data []byte
}

// Open maps the file at path, which must be a regular file (or a link to one): opening a pipe could wait for ever.
func Open(path string) (*Map, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err = f.Stat(); err != nil {
		return nil, err
	}
	size := fi.Size()
	if size > math.MaxInt {
		return nil, fmt.Errorf("%s: %d bytes do not fit this machine's address space", path, size)
	}
	if size == 0 { // an empty map is an error to the kernel
		return &Map{}, nil
	}
	data, err := mapFile(f, int(size))
	if err != nil {
		return nil, fmt.Errorf("%s: cannot map %d bytes: %w", path, size, err)
	}
	return &Map{Data: data}, nil
}

// Close gives the view up. Closing twice is allowed.
func (m *Map) Close() error {
	data := m.Data
	m.Data = nil
	if data == nil {
		return nil
	}
	return unmap(data)
}
