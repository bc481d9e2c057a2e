//go:build !linux && !darwin

package mmap

import (
	"io"
	"os"
)

// views: Data is the file, not a copy of it.
const views = false

func mapFile(f *os.File, size int) ([]byte, error) {
	data := make([]byte, size)
	_, err := io.ReadFull(f, data)
	return data, err
}

func unmap([]byte) error { return nil }

// Release does nothing: Data is ordinary memory here.
func (m *Map) Release([]byte) {}

// Rest does nothing: Data is ordinary memory here.
func (m *Map) Rest([]byte) {}

// ReadAhead does nothing: all has been read.
func (m *Map) ReadAhead([]byte) {}
