package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/minio/minio-go/v7"
)

// Sizes of what goes over the network. Parts are all of one size, as some stores demand; 10000 of them, the most there may be, are
// 320 GB, more than the hidden states of any run.
const (
	partBytes = 32 << 20
	// heldBytes is the largest object that is read once and kept, where larger ones are read twice: to check, then to use.
	heldBytes = 64 << 20
	// abandoned uploads are those of processes that were killed so long ago at least.
	abandonedAfter = time.Hour
)

// list implements files.
func (b *bucket) list() ([]info, error) {
	var list []info
	token := ""
	for {
		var page minio.ListBucketV2Result
		err := b.try("list", func() (err error) {
			page, err = b.core.ListObjectsV2(b.name, b.prefix, "", token, "", 1000)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, o := range page.Contents {
			list = append(list, info{o.Key[len(b.prefix):], o.Size, o.LastModified})
		}
		if token = page.NextContinuationToken; !page.IsTruncated || token == "" {
			return list, nil
		}
	}
}

// remove implements files.
func (b *bucket) remove(name string) error {
	err := b.try(name, func() error {
		if err := b.held(); err != nil {
			return err
		}
		return b.core.RemoveObject(b.ctx, b.name, b.key(name), minio.RemoveObjectOptions{})
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// sweep ends uploads that killed processes have left: a store keeps their parts, unseen, for ever.
func (b *bucket) sweep() error {
	var key, id string
	for {
		var page minio.ListMultipartUploadsResult
		err := b.try("list", func() (err error) {
			page, err = b.core.ListMultipartUploads(b.ctx, b.name, b.prefix, key, id, "", 1000)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) { // some stores have no list of nothing
			return nil
		}
		if err != nil {
			return err
		}
		for _, u := range page.Uploads {
			if b.time().Sub(u.Initiated) < abandonedAfter {
				continue // another process may be about it
			}
			err := b.try(u.Key, func() error { return b.core.AbortMultipartUpload(b.ctx, b.name, u.Key, u.UploadID) })
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if key, id = page.NextKeyMarker, page.NextUploadIDMarker; !page.IsTruncated || key == "" {
			return nil
		}
	}
}

// object is an object that is being read: the version that was there when it was opened.
type object struct {
	b     *bucket
	name  string
	bytes int64
	etag  string
	data  []byte        // all of it, if it is small
	body  io.ReadCloser // of the reader that is under way
}

// read implements files.
func (b *bucket) read(name string) (content, error) {
	o := &object{b: b, name: name}
	err := b.try(name, func() error {
		body, info, _, err := b.core.GetObject(b.ctx, b.name, b.key(name), minio.GetObjectOptions{})
		if err != nil {
			return err
		}
		o.bytes, o.etag = info.Size, info.ETag
		if info.Size > b.heldBytes {
			o.body = body // the first reader takes it
			return nil
		}
		defer body.Close()
		o.data = make([]byte, info.Size)
		_, err = io.ReadFull(body, o.data)
		return err
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

func (o *object) size() int64  { return o.bytes }
func (o *object) unsure() bool { return o.data == nil }

func (o *object) reader() (io.Reader, error) {
	if o.unsure() {
		r := &objectReader{o: o, body: o.body}
		o.body = nil
		if r.body == nil {
			if err := r.open(); err != nil {
				return nil, err
			}
		}
		o.body = r.body
		return r, nil
	}
	return bytes.NewReader(o.data), nil
}

func (o *object) end(n int64) ([]byte, error) {
	if o.data != nil {
		return o.data[int64(len(o.data))-n:], nil
	}
	r := &objectReader{o: o, off: o.bytes - n}
	first := o.body
	if err := r.open(); err != nil {
		return nil, err
	}
	if first != nil {
		first.Close()
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func (o *object) Close() error {
	if o.body == nil {
		return nil
	}
	return o.body.Close()
}

// objectReader reads a large object, and goes on where it was when the connection breaks.
type objectReader struct {
	o    *object
	off  int64
	body io.ReadCloser
}

// open has r.body give the object from r.off on.
func (r *objectReader) open() error {
	return r.o.b.try(r.o.name, func() error {
		var opt minio.GetObjectOptions
		if err := errors.Join(opt.SetMatchETag(r.o.etag), opt.SetRange(r.off, r.o.bytes-1)); err != nil {
			return err
		}
		body, _, _, err := r.o.b.core.GetObject(r.o.b.ctx, r.o.b.name, r.o.b.key(r.o.name), opt)
		if err == nil {
			r.body, r.o.body = body, body
		}
		return err
	})
}

func (r *objectReader) Read(p []byte) (int, error) {
	if r.off == r.o.bytes {
		return 0, io.EOF
	}
	n, err := r.body.Read(p)
	r.off += int64(n)
	if err == nil || r.off == r.o.bytes {
		return n, nil
	}
	if err := r.o.b.ctx.Err(); err != nil {
		return n, err
	}
	r.body.Close()
	return n, r.open()
}

// objectWriter is an object on its way to the store: in one piece if it is small, else in parts.
type objectWriter struct {
	b       *bucket
	name    string
	replace bool
	buf     []byte
	upload  string // of the parts
	parts   []minio.CompletePart
	bytes   int64 // of the parts
	done    bool
}

// create implements files.
func (b *bucket) create(name string, size int64, opt creation) (Writer, error) {
	if err := b.try(name, b.held); err != nil {
		return nil, err
	}
	if !opt.replace { // it would be refused in the end, after all has been sent
		err := b.try(name, func() error {
			_, err := b.core.StatObject(b.ctx, b.name, b.key(name), minio.StatObjectOptions{})
			return err
		})
		switch {
		case err == nil:
			return nil, fmt.Errorf("%s: %s: %w", b.Path(), name, fs.ErrExist)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	return &objectWriter{b: b, name: name, replace: opt.replace, buf: make([]byte, 0, min(size, int64(b.partBytes)))}, nil
}

func (w *objectWriter) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(len(p)-done, w.b.partBytes-len(w.buf))
		w.buf = append(w.buf, p[done:done+n]...)
		done += n
		if len(w.buf) == w.b.partBytes {
			if err := w.put(); err != nil {
				return done, err
			}
		}
	}
	return len(p), nil
}

// put puts a part.
func (w *objectWriter) put() error {
	return w.b.try(w.name, func() (err error) {
		if err := w.b.held(); err != nil {
			return err
		}
		if w.upload == "" {
			if w.upload, err = w.b.core.NewMultipartUpload(w.b.ctx, w.b.name, w.b.key(w.name), minio.PutObjectOptions{}); err != nil {
				return err
			}
		}
		n := len(w.parts) + 1
		part, err := w.b.core.PutObjectPart(w.b.ctx, w.b.name, w.b.key(w.name), w.upload, n, bytes.NewReader(w.buf), int64(len(w.buf)),
			minio.PutObjectPartOptions{Sha256Hex: sha256Hex(w.buf), DisableContentSha256: true})
		if err != nil {
			return err
		}
		w.parts = append(w.parts, minio.CompletePart{PartNumber: n, ETag: part.ETag})
		w.bytes += int64(len(w.buf))
		w.buf = w.buf[:0]
		return nil
	})
}

// sha256Hex is what a request is signed with: the store refuses what arrives otherwise. minio-go takes it, in place of signing chunks,
// which some stores do not know in parts, with DisableContentSha256.
func sha256Hex(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Commit implements Writer.
func (w *objectWriter) Commit() error {
	if w.done {
		return fmt.Errorf("%s: %s: was given up", w.b.Path(), w.name)
	}
	if w.upload != "" && len(w.buf) > 0 {
		if err := w.put(); err != nil {
			w.Abort()
			return err
		}
	}
	opt := unlessThere()
	if w.replace {
		opt = minio.PutObjectOptions{DisableContentSha256: true}
	}
	err := w.b.try(w.name, func() error {
		if err := w.b.held(); err != nil {
			return err
		}
		if w.upload == "" {
			_, err := w.b.core.PutObject(w.b.ctx, w.b.name, w.b.key(w.name), bytes.NewReader(w.buf), int64(len(w.buf)), "", sha256Hex(w.buf), opt)
			return err
		}
		_, err := w.b.core.CompleteMultipartUpload(w.b.ctx, w.b.name, w.b.key(w.name), w.upload, w.parts, opt)
		if minio.ToErrorResponse(err).Code == minio.NoSuchUpload { // perhaps it was completed, and the answer got lost
			if o, there := w.b.core.StatObject(w.b.ctx, w.b.name, w.b.key(w.name), minio.StatObjectOptions{}); there == nil && o.Size == w.bytes {
				return nil
			}
		}
		return err
	})
	if err != nil {
		w.Abort()
		return err
	}
	w.done = true
	return nil
}

// Abort implements Writer.
func (w *objectWriter) Abort() {
	if w.done {
		return
	}
	w.done = true
	if w.upload != "" { // what fails here is swept later
		w.b.core.AbortMultipartUpload(w.b.ctx, w.b.name, w.b.key(w.name), w.upload)
	}
}
