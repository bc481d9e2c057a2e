package hub

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// transfer is a file on its way to incomplete, whose length is what has arrived.
type transfer struct {
	c     *Client
	l     *Listing
	f     File
	add   func(int64) // told of bytes that have arrived; fewer than 0 if they were for nothing
	file  *os.File
	have  int64
	sum   hash.Hash // of the first have bytes
	retry retry
}

// fetch brings incomplete to the file's full length and checks its digest. What it holds already is not asked for again, nor after
// fetch was interrupted.
func (c *Client) fetch(ctx context.Context, l *Listing, f File, incomplete string, add func(int64)) (err error) {
	what := l.Repo + ": " + f.Path
	file, err := os.OpenFile(incomplete, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("hub: %s: %w", what, err)
	}
	defer func() {
		if e := file.Close(); err == nil && e != nil {
			err = fmt.Errorf("hub: %s: %w", what, e)
		}
	}()
	t := &transfer{c: c, l: l, f: f, add: add, file: file, sum: f.summer(), retry: retry{c: c, what: what}}
	if t.have, err = copyAll(ctx, t.sum, file); err != nil {
		return fmt.Errorf("hub: %s: %w", incomplete, err)
	}
	resumed := t.have > 0
	for {
		if t.have > f.Bytes { // of another tool, perhaps
			if err := t.restart(); err != nil {
				return err
			}
		}
		if err := t.run(ctx); err != nil {
			return err
		}
		got := sum(t.sum)
		if got == f.Digest {
			break
		}
		if !resumed {
			os.Remove(incomplete)
			return fmt.Errorf("hub: %s: the server has sent %d bytes with digest %s, not %s", what, f.Bytes, got, f.Digest)
		}
		// What lay there may have been of a crash, or begun by another tool.
		c.notify("%s: its beginning, from an earlier run, was not right: fetching it again", what)
		resumed = false
		if err := t.restart(); err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("hub: %s: %w", what, err)
	}
	return nil
}

// restart forgets what has arrived.
func (t *transfer) restart() error {
	if err := t.file.Truncate(0); err != nil {
		return fmt.Errorf("hub: %s: %w", t.retry.what, err)
	}
	if _, err := t.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("hub: %s: %w", t.retry.what, err)
	}
	t.add(-min(t.have, t.f.Bytes))
	t.have, t.sum = 0, t.f.summer()
	return nil
}

// run asks for what is missing until all is there.
func (t *transfer) run(ctx context.Context) error {
	for t.have < t.f.Bytes {
		before := t.have
		err := t.once(ctx)
		var wrong *wrongLength
		var disk *writeError
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.As(err, &wrong), errors.As(err, &disk):
			return fmt.Errorf("hub: %s: %w", t.retry.what, err)
		}
		var final *finalError
		if errors.As(err, &final) {
			return final.error
		}
		if t.have > before {
			t.retry.attempts = 0
		}
		if err := t.retry.wait(ctx, plainError(err), 0); err != nil {
			return err
		}
	}
	return nil
}

// finalError has been tried often enough.
type finalError struct{ error }

// wrongLength is an answer about another file than the one that is listed.
type wrongLength struct{ message string }

func (e *wrongLength) Error() string { return e.message }

// once makes one request.
func (t *transfer) once(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := t.c.get(ctx, t.l.Ref, t.c.address(t.l, t.f), span{lo: t.have}, &t.retry)
	if err != nil {
		return &finalError{err}
	}
	defer resp.Body.Close()
	if t.have > 0 && resp.StatusCode == http.StatusOK {
		t.c.notify("%s: %s cannot go on in the middle of a file: fetching it from its beginning", t.retry.what, hostOf(resp))
		if err := t.restart(); err != nil {
			return &finalError{err}
		}
	}
	if err := checkRange(resp, t.have, t.f.Bytes); err != nil {
		return err
	}
	idle := fmt.Errorf("%s has sent nothing for %s", hostOf(resp), maxIdle)
	body, stop := withoutIdling(resp.Body, func() { cancel(idle) })
	defer stop()
	_, err = copyAll(ctx, t, body)
	switch {
	case context.Cause(ctx) == idle:
		return idle
	case err != nil:
		return err
	case t.have < t.f.Bytes:
		return fmt.Errorf("%s has ended the connection after %d of %d bytes", hostOf(resp), t.have, t.f.Bytes)
	}
	return nil
}

// checkRange demands an answer that begins at byte from, about a file of size bytes.
func checkRange(resp *http.Response, from, size int64) error {
	if resp.StatusCode == http.StatusOK {
		if n := resp.ContentLength; n >= 0 && n != size {
			return &wrongLength{fmt.Sprintf("%s has %d bytes of it, the repository lists %d", hostOf(resp), n, size)}
		}
		return nil
	}
	header := resp.Header.Get("Content-Range") // bytes 100-199/200
	begins, total, ok := strings.Cut(strings.TrimPrefix(header, "bytes "), "/")
	first, _, ok2 := strings.Cut(begins, "-")
	begin, err := strconv.ParseInt(first, 10, 64)
	switch {
	case !ok || !ok2 || err != nil || begin != from:
		return &wrongLength{fmt.Sprintf("asked for bytes from %d, %s answers with %.60q", from, hostOf(resp), header)}
	case total != "*" && total != strconv.FormatInt(size, 10):
		return &wrongLength{fmt.Sprintf("%s has %.30s bytes of it, the repository lists %d", hostOf(resp), total, size)}
	}
	return nil
}

// Write takes bytes that have arrived.
func (t *transfer) Write(p []byte) (int, error) {
	if int64(len(p)) > t.f.Bytes-t.have {
		return 0, &wrongLength{fmt.Sprintf("more bytes arrive than the %d that the repository lists", t.f.Bytes)}
	}
	n, err := t.file.Write(p)
	t.sum.Write(p[:n])
	t.have += int64(n)
	t.add(int64(n))
	return n, err
}
