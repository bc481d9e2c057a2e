//go:build !linux

package mmap

import (
	"errors"
	"fmt"
)

// OpenLazy needs maps whose pages come and go.
func OpenLazy(path string, _ int64, _ Filler) (*Map, error) {
	return nil, fmt.Errorf("%s: %w on this system", path, errors.ErrUnsupported)
}

func (m *Map) offsets([]byte) (lo, hi int64) { return 0, 0 }

func (m *Map) allow(lo, hi int64) error { return nil }

// Forbid has nothing to forbid: there are no lazy maps here.
func (m *Map) Forbid(lo, hi int64) error { return nil }
