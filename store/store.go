// Package store keeps named values in a folder, so that a computation which was cut off goes on from those that it has:
// units of work are pure functions of named inputs to named outputs, and one whose output is there is not done again.
//
// A value is whole or absent: its file takes its name when all bytes are on the disk (internal/atomicfile). It ends with a
// SHA-256 over the run that it belongs to, its name and its contents, which is checked before anything is read: a file that is
// damaged, or another's, is removed as if it had never been, and made again. A folder belongs to one run (see Part); a run
// of anything else is refused there.
package store

import (
	"io"
)

// Store is what a run needs of a folder.
type Store interface {
	// Create starts a value, to replace one that is there.
	Create(name string) (Writer, error)
	// Open returns a value's contents once they are known to be what was written; an error that is fs.ErrNotExist if there
	// are none such.
	Open(name string) (io.ReadCloser, error)
	// Delete removes values. Those that are absent do not matter.
	Delete(names ...string) error
	// Names lists the values in order.
	Names() ([]string, error)
}

// Writer takes a value's contents, for one goroutine at a time. Nothing is seen of them before Commit, which has them on the
// disk, and nothing at all after Abort, which does nothing after Commit.
type Writer interface {
	io.Writer
	Commit() error
	Abort()
}
