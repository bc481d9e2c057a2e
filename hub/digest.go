package hub

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
)

// summer returns what computes the kind of digest that f has.
func (f *File) summer() hash.Hash {
	if len(f.Digest) == 2*sha256.Size {
		return sha256.New()
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", f.Bytes) // as git names its objects
	return h
}

// sum is a digest in hexadecimal.
func sum(h hash.Hash) Digest { return Digest(hex.EncodeToString(h.Sum(nil))) }

// copyBytes is how much is read at a time.
const copyBytes = 256 << 10

// copyAll copies src to dst, which takes what arrives at once, until it ends or ctx is done.
func copyAll(ctx context.Context, dst io.Writer, src io.Reader) (n int64, err error) {
	buf := make([]byte, copyBytes)
	for {
		k, err := src.Read(buf)
		if k > 0 {
			if _, e := dst.Write(buf[:k]); e != nil {
				return n, &writeError{e}
			}
			n += int64(k)
		}
		switch {
		case ctx.Err() != nil:
			return n, ctx.Err()
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// writeError is a disk's, which no further attempt makes good.
type writeError struct{ error }

func (e *writeError) Unwrap() error { return e.error }

// holds says whether the file at path is f: of the same size and digest.
func holds(ctx context.Context, path string, f *File) (bool, error) {
	file, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || info.Size() != f.Bytes || !info.Mode().IsRegular() {
		return false, err
	}
	h := f.summer()
	if _, err := copyAll(ctx, h, file); err != nil {
		return false, err
	}
	return sum(h) == f.Digest, nil
}
