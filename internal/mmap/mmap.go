// Package mmap gives read-only views of whole files, so that reading a tensor copies nothing.
//
// On Linux and macOS a view is a memory map: its pages are read when they are touched, and the kernel may take them
// back. Elsewhere the file is read into memory.
//
// What others do to a mapped file shows in the view. Changed notices that they wrote to it, and Guard that they cut it off.
package mmap

import (
	"fmt"
	"io/fs"
	"math"
	"os"
)

// Map is a view of a file.
type Map struct {
	// Data is the file's content. It must not be written to, and must not be used after Close.
	Data []byte

	path   string
	file   *os.File    // what Data is a map of; nil where Data is a copy
	info   fs.FileInfo // of file when it was mapped
	filler Filler      // nil where all of the file is there
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
	m, err := open(path, f)
	if err != nil || m.file == nil {
		f.Close()
	}
	return m, err
}

func open(path string, f *os.File) (*Map, error) {
	fi, err := f.Stat()
	if err != nil {
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
	m := &Map{Data: data, path: path}
	if views {
		m.file, m.info = f, fi
		register(m)
	}
	return m, nil
}

// Changed is an error that names the file if it has another size or time of modification than when it was opened: what Data
// shows may be some of the old file and some of the new. A file that was renamed, removed, or replaced by another under its
// name is still there, as it was.
func (m *Map) Changed() error {
	if m.file == nil {
		return nil
	}
	now, err := m.file.Stat()
	switch {
	case err != nil:
		return err
	case now.Size() != m.info.Size():
		return fmt.Errorf("%s: the file was changed while it was read: it had %d bytes, and has %d", m.path, m.info.Size(), now.Size())
	case m.filler == nil && !now.ModTime().Equal(m.info.ModTime()):
		return fmt.Errorf("%s: the file was written to while it was read, at %s", m.path, now.ModTime().Format("15:04:05"))
	}
	return nil
}

// Close gives the view up. Closing twice is allowed.
func (m *Map) Close() error {
	if m.file != nil {
		unregister(m)
		m.file.Close() // it was only read
		m.file = nil
	}
	data := m.Data
	m.Data = nil
	if data == nil {
		return nil
	}
	return unmap(data)
}
