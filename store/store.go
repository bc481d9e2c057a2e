// Package store keeps named values in a folder or in a bucket, so that a computation which was cut off goes on from those that it
// has: units of work are pure functions of named inputs to named outputs, and one whose output is there is not done again.
//
// A value is whole or absent: its file takes its name when all bytes are on the disk (internal/atomicfile), its object when all have
// been put. It ends with a SHA-256 over the run that it belongs to, its name and its contents, which is checked before anything is
// read: one that is damaged, or another's, is removed as if it had never been, and made again. A folder belongs to one run (see
// Part); a run of anything else is refused there.
//
// What is kept and how is in values.go and run.go; where is a files: a folder (dir.go), or a bucket that speaks S3 (bucket.go).
package store

import (
	"context"
	"io"
	"strings"
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

// Shared is a Store to which several processes put values. Values are pure functions of their names, so whoever comes first
// will do: what is there is not replaced.
type Shared interface {
	Store
	// Put keeps what write writes, unless the value is there already, and returns its digest in either case: two digests of
	// one name that differ come from a process that computes something else. A value that is not lasting may be found damaged,
	// and be absent, after a power cut.
	Put(name string, lasting bool, write func(w io.Writer) error) (digest string, err error)
	// Digest is what a value that is there says of itself, without a look at its contents; an error that is fs.ErrNotExist if
	// there is none.
	Digest(name string) (string, error)
}

// Folder is where a run keeps its values: a *Dir or a *Bucket.
type Folder interface {
	Shared
	// Path is what a user calls it.
	Path() string
	// ID tells the run that it belongs to from others.
	ID() string
	// Note writes down how far the run is, for Look.
	Note(s *Standing) error
	// NoteWorkers writes down who takes part in the run, for Look: nobody where there is no such run.
	NoteWorkers(list []Worker) error
	// Room refuses a folder that has less than so many bytes, those that values and partial outputs take already included.
	Room(bytes int64) error
	// Damaged lists the values that were found damaged, and removed.
	Damaged() []string
	// Close lets others work in the folder. What it holds stays.
	Close() error
}

// Open returns the store at a location, s3://bucket/prefix or a folder, for a run that depends on parts: see OpenDir and OpenBucket.
// say tells a user what is waited for.
func Open(ctx context.Context, location string, parts []Part, say func(message string)) (Folder, error) {
	if IsBucket(location) {
		return OpenBucket(ctx, location, parts, say)
	}
	return OpenDir(location, parts)
}

// Join opens the store of a run that another process holds, to put values there and to read them.
func Join(ctx context.Context, location string, say func(message string)) (Folder, error) {
	if IsBucket(location) {
		return JoinBucket(ctx, location, say)
	}
	return JoinDir(location)
}

// Look reads how far the run at a location is, without holding it.
func Look(ctx context.Context, location string) (*Overview, error) {
	if IsBucket(location) {
		return lookBucket(ctx, location)
	}
	return lookDir(location)
}

// bucketScheme begins the location of a bucket.
const bucketScheme = "s3://"

// IsBucket says whether a location is that of a bucket.
func IsBucket(location string) bool { return strings.HasPrefix(location, bucketScheme) }
