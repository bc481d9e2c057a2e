package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// A process that works in a bucket has a lease there: an object that it writes again while it lives. One that was not written
// for leaseTime, by the store's clock, is anybody's. Both by conditional writes: a lease is made if there is none (If-None-Match: *), and
// renewed or taken over if it is the one that was seen (If-Match). Who finds that another has taken it over stops.
const (
	leaseName  = "lease.json"
	leaseTime  = time.Minute
	leaseRenew = leaseTime / 6
)

// holder is the object leaseName.
type holder struct {
	Host    string `json:"host"`
	Process int    `json:"process"`
	Nonce   string `json:"nonce"`   // tells processes apart
	Renewed int    `json:"renewed"` // how often: no two versions are the same
}

func (h *holder) String() string { return fmt.Sprintf("process %d on %s", h.Process, h.Host) }

// lease is a bucket's, if it is held.
type lease struct {
	mu    sync.Mutex
	self  holder
	etag  string
	at    time.Time // when it was renewed
	lost  error
	stop  context.CancelFunc // ends its renewal; nil if it is not held
	ended chan struct{}      // when that has ended
}

// errLost: another process works in the bucket.
var errLost = errors.New("another process has taken the work over: this one had not been heard of for too long")

// acquire gets the lease. It waits for one that a killed process may have left to run out.
func (b *bucket) acquire() error {
	host, _ := os.Hostname()
	l := &b.lease
	l.self = holder{Host: host, Process: os.Getpid(), Nonce: rand.Text()}
	for seen := ""; ; { // the lease that is waited for
		err := b.try(leaseName, func() error { return b.putLease(b.ctx, unlessThere()) })
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		var h *holder
		var at time.Time
		var etag string
		err = b.try(leaseName, func() (err error) {
			h, at, etag, err = b.leaseThere(b.ctx)
			return err
		})
		if errors.Is(err, fs.ErrNotExist) { // it has been given back since
			if err := b.clock.wait(b.ctx, time.Second/4); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if h.Nonce == l.self.Nonce { // it is ours, and the answer that said so got lost
			l.etag, l.at = etag, b.clock.now()
			break
		}
		if seen != "" && etag != seen {
			return fmt.Errorf("%s: another process works there: %v", b.Path(), h)
		}
		left := leaseTime - b.time().Sub(at)
		if left <= 0 {
			err := b.try(leaseName, func() error { return b.putLease(b.ctx, ifStill(etag)) })
			if err == nil {
				break
			}
			if !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if seen == "" {
			b.say(fmt.Sprintf("%s: %v works there, or was killed less than %v ago: waiting whether it is heard of again", b.Path(), h, leaseTime))
		}
		seen = etag
		if err := b.clock.wait(b.ctx, min(left, leaseRenew/2)); err != nil {
			return err
		}
	}
	if err := b.conditional(); err != nil {
		return errors.Join(err, b.release())
	}
	ctx, stop := context.WithCancel(b.ctx)
	l.stop, l.ended = stop, make(chan struct{})
	go func() {
		defer close(l.ended)
		for b.clock.tick(ctx, leaseRenew) == nil {
			b.renew(ctx) // a store that is out of reach is tried again later
		}
	}()
	return nil
}

// unlessThere has an object written only if there is none.
func unlessThere() (opt minio.PutObjectOptions) {
	opt.DisableContentSha256 = true // see sha256Hex
	opt.SetMatchETagExcept("*")
	return opt
}

// ifStill has an object replaced only if it is the version that was seen.
func ifStill(etag string) (opt minio.PutObjectOptions) {
	opt.DisableContentSha256 = true
	opt.SetMatchETag(etag)
	return opt
}

// conditional refuses a store that takes no notice of conditions.
func (b *bucket) conditional() error {
	err := b.try(leaseName, func() error { return b.putLease(b.ctx, unlessThere()) })
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		err = errors.New("it takes no notice of If-None-Match")
	}
	return fmt.Errorf("%s: the store must know conditional writes, or two processes cannot be kept apart: %w", b.Path(), err)
}

// putLease writes the lease, on a condition.
func (b *bucket) putLease(ctx context.Context, condition minio.PutObjectOptions) error {
	l := &b.lease
	l.self.Renewed++
	data, err := json.Marshal(&l.self)
	if err != nil {
		return err
	}
	at := b.clock.now()
	put, err := b.core.PutObject(ctx, b.name, b.key(leaseName), bytes.NewReader(data), int64(len(data)), "", sha256Hex(data), condition)
	if err == nil {
		l.etag, l.at = put.ETag, at
	}
	return err
}

// leaseThere reads the lease.
func (b *bucket) leaseThere(ctx context.Context) (h *holder, at time.Time, etag string, err error) {
	body, info, _, err := b.core.GetObject(ctx, b.name, b.key(leaseName), minio.GetObjectOptions{})
	if err != nil {
		return nil, at, "", err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, 1<<16))
	h = &holder{}
	json.Unmarshal(data, h) // one that says nothing is a lease all the same
	return h, info.LastModified, info.ETag, err
}

// leased says whether a process has a lease that has not run out.
func (b *bucket) leased() (bool, error) {
	var at time.Time
	err := b.try(leaseName, func() (err error) {
		_, at, _, err = b.leaseThere(b.ctx)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && b.time().Sub(at) < leaseTime, err
}

// renew writes the lease again, unless it is another's by now.
func (b *bucket) renew(ctx context.Context) error {
	l := &b.lease
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil {
		return l.lost
	}
	err := b.putLease(ctx, ifStill(l.etag))
	if e := b.explained(leaseName, err); !errors.Is(e, fs.ErrExist) && !errors.Is(e, fs.ErrNotExist) {
		return err
	}
	switch h, _, etag, there := b.leaseThere(ctx); {
	case there == nil && h.Nonce == l.self.Nonce: // the answer to an earlier renewal got lost
		l.etag, l.at = etag, b.clock.now()
		return nil
	case there == nil:
		l.lost = fmt.Errorf("%s: %w (%v)", b.Path(), errLost, h)
	case errors.Is(b.explained(leaseName, there), fs.ErrNotExist):
		l.lost = fmt.Errorf("%s: %w", b.Path(), errLost)
	default:
		return there
	}
	return l.lost
}

// held is an error if the lease is another's by now. A process that does not hold it, but has joined, may write too.
func (b *bucket) held() error {
	l := &b.lease
	if l.stop == nil {
		return nil
	}
	l.mu.Lock()
	lost, late := l.lost, b.clock.now().Sub(l.at) >= leaseTime-leaseRenew
	l.mu.Unlock()
	if lost == nil && late {
		return b.renew(b.ctx)
	}
	return lost
}

// release gives the lease back, if it is still held.
func (b *bucket) release() error {
	l := &b.lease
	if l.stop != nil {
		l.stop()
		<-l.ended
		l.stop = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost != nil || l.etag == "" {
		return nil
	}
	l.etag = ""
	// Also when the run was interrupted; but nobody waits long for it then.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), leaseRenew)
	defer cancel()
	return b.explained(leaseName, b.core.RemoveObject(ctx, b.name, b.key(leaseName), minio.RemoveObjectOptions{}))
}
