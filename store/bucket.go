package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Bucket is a Folder in a bucket of a store that speaks S3: s3://bucket/prefix. Objects take their names when all of their bytes
// have been put. Two processes are kept apart by a lease (lease.go), for which the store must know conditional writes.
type Bucket struct {
	*values
	bucket *bucket
}

// OpenBucket is OpenDir for a bucket. Who may write there is known from the environment, as the tools of AWS have it:
// AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN), or a profile (AWS_PROFILE) of ~/.aws/credentials, or a machine's
// role; AWS_REGION; AWS_ENDPOINT_URL for what is not Amazon's. When ctx ends, so does what is waited for. say tells a user what that is.
func OpenBucket(ctx context.Context, location string, parts []Part, say func(message string)) (*Bucket, error) {
	b, err := newBucket(ctx, location, say)
	if err != nil {
		return nil, err
	}
	return openBucket(b, parts)
}

func openBucket(b *bucket, parts []Part) (*Bucket, error) {
	if err := begin(b, parts); err != nil {
		return nil, err
	}
	if err := belongs(b, parts); err != nil {
		return nil, err
	}
	if err := b.acquire(); err != nil {
		return nil, err
	}
	if err := b.sweep(); err != nil {
		return nil, errors.Join(err, b.release())
	}
	b.patience = runPatience
	return &Bucket{newValues(b, parts), b}, nil
}

// JoinBucket is JoinDir for a bucket.
func JoinBucket(ctx context.Context, location string, say func(message string)) (*Bucket, error) {
	b, err := newBucket(ctx, location, say)
	if err != nil {
		return nil, err
	}
	r, err := readRun(b)
	if err != nil {
		return nil, err
	}
	b.patience = runPatience
	return &Bucket{newValues(b, r.Parts), b}, nil
}

func lookBucket(ctx context.Context, location string) (*Overview, error) {
	b, err := newBucket(ctx, location, func(string) {})
	if err != nil {
		return nil, err
	}
	return look(b, b.leased)
}

// Room implements Folder: nobody knows how much a bucket holds.
func (b *Bucket) Room(int64) error { return nil }

// Close implements Folder.
func (b *Bucket) Close() error { return b.bucket.release() }

// bucket is the files under a prefix of a bucket.
type bucket struct {
	ctx      context.Context
	core     *minio.Core
	name     string
	prefix   string // ends with a slash, unless it is empty
	say      func(message string)
	clock    clock
	patience time.Duration // how long the store may be out of reach
	// ahead is how far the store's clock is ahead of ours, as of its last answer.
	ahead atomic.Int64
	// out is when it was found out of reach, 0 if it is not: Unix nanoseconds.
	out   atomic.Int64
	lease lease
	// partBytes and heldBytes are the constants of these names; tests have less.
	partBytes int
	heldBytes int64
}

// How long a store may be out of reach before a run begins, when its address may be wrong, and later, when hours are at stake.
const (
	openPatience = 30 * time.Second
	runPatience  = 30 * time.Minute
)

// clock is time; tests have another.
type clock struct {
	now func() time.Time
	// wait returns after so long, or when ctx ends; tick is for what is not waited for.
	wait, tick func(ctx context.Context, d time.Duration) error
}

var wallClock = clock{time.Now, sleep, sleep}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// newBucket prepares to speak to a bucket; nothing is sent yet.
func newBucket(ctx context.Context, location string, say func(message string)) (*bucket, error) {
	name, prefix, _ := strings.Cut(strings.TrimPrefix(location, bucketScheme), "/")
	if prefix = strings.Trim(prefix, "/"); prefix != "" {
		prefix += "/"
	}
	if name == "" {
		return nil, fmt.Errorf("%s: want s3://BUCKET/PREFIX", location)
	}
	b := &bucket{ctx: ctx, name: name, prefix: prefix, say: say, clock: wallClock, patience: openPatience,
		partBytes: partBytes, heldBytes: heldBytes}
	host, opt, err := environment()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.Path(), err)
	}
	transport, err := minio.DefaultTransport(opt.Secure)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.Path(), err)
	}
	opt.Transport = b.dated(transport)
	if b.core, err = minio.NewCore(host, opt); err != nil {
		return nil, fmt.Errorf("%s: %w", b.Path(), err)
	}
	return b, nil
}

// environment is where the store is, and who asks, as the environment says.
func environment() (host string, opt *minio.Options, err error) {
	providers := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	first := func(names ...string) string {
		for _, name := range names {
			if v := os.Getenv(name); v != "" {
				return v
			}
		}
		return ""
	}
	// Retries are ours (bucket.try).
	opt = &minio.Options{Secure: true, MaxRetries: 1, Region: first("AWS_REGION", "AWS_DEFAULT_REGION")}
	host = "s3.amazonaws.com"
	if endpoint := first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"); endpoint != "" {
		u, err := url.Parse(endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || strings.Trim(u.Path, "/") != "" {
			return "", nil, fmt.Errorf("AWS_ENDPOINT_URL is %q: want such as https://s3.example.com:9000", endpoint)
		}
		host, opt.Secure, opt.BucketLookup = u.Host, u.Scheme == "https", minio.BucketLookupPath
		if opt.Region == "" {
			opt.Region = "us-east-1" // what stores take that have no regions
		}
	} else {
		const most = 5 * time.Second // where there is no role to be had, nobody answers
		providers = append(providers, &credentials.IAM{Client: &http.Client{Timeout: most}})
	}
	opt.Creds = credentials.NewChainCredentials(providers)
	who, err := opt.Creds.GetWithContext(&credentials.CredContext{Client: http.DefaultClient})
	if err != nil || who.AccessKeyID == "" {
		return "", nil, errors.New("no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or have a profile in ~/.aws/credentials")
	}
	return host, opt, nil
}

// Path implements files.
func (b *bucket) Path() string { return bucketScheme + strings.TrimSuffix(b.name+"/"+b.prefix, "/") }

// key is the object of a file.
func (b *bucket) key(name string) string { return b.prefix + name }

// dated notes the store's time with each of its answers.
func (b *bucket) dated(t http.RoundTripper) http.RoundTripper { return &datedTransport{t, b} }

type datedTransport struct {
	http.RoundTripper
	b *bucket
}

func (t *datedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	if err == nil {
		if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
			t.b.ahead.Store(int64(date.Sub(t.b.clock.now())))
		}
	}
	return resp, err
}

// time is the store's.
func (b *bucket) time() time.Time { return b.clock.now().Add(time.Duration(b.ahead.Load())) }

// try does something with a file until the store is there to do it, at most for b.patience, and says what it waits for.
func (b *bucket) try(name string, do func() error) error {
	const first, longest = time.Second / 4, 10 * time.Second
	var since time.Time // when this was tried in vain
	for pause := first; ; pause = min(2*pause, longest) {
		err := do()
		if err := b.ctx.Err(); err != nil {
			return context.Cause(b.ctx)
		}
		now := b.clock.now()
		if err == nil || !passing(err) {
			if out := b.out.Swap(0); out != 0 {
				b.say(fmt.Sprintf("%s: can be reached again after %v", b.Path(), now.Sub(time.Unix(0, out)).Round(time.Second)))
			}
			return b.explained(name, err)
		}
		if b.out.CompareAndSwap(0, now.UnixNano()) {
			b.say(fmt.Sprintf("%s: cannot be reached: %v: it is tried again for %v", b.Path(), err, b.patience))
		}
		if since.IsZero() {
			since = now
		}
		if now.Sub(since) >= b.patience {
			return fmt.Errorf("%s: could not be reached for %v: %w", b.Path(), now.Sub(since).Round(time.Second), err)
		}
		if err := b.clock.wait(b.ctx, pause); err != nil {
			return err
		}
	}
}

// passing says whether an error may go away by itself: nobody answered, or the store said that it was in trouble.
func passing(err error) bool {
	if errors.Is(err, errLost) {
		return false
	}
	if r, ok := errors.AsType[minio.ErrorResponse](err); ok {
		switch r.Code {
		case "SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded":
			return true
		}
		return r.StatusCode >= 500 && r.StatusCode != http.StatusNotImplemented || r.StatusCode == http.StatusTooManyRequests
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return false
	}
	return !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// explained is an error in words that a user can do something with. What fs has a name for is that too.
func (b *bucket) explained(name string, err error) error {
	r, ok := errors.AsType[minio.ErrorResponse](err)
	switch {
	case err == nil || errors.Is(err, errLost):
		return err
	case !ok:
		return fmt.Errorf("%s: %s: %w", b.Path(), name, err)
	case r.Code == "NoSuchBucket":
		return fmt.Errorf("%s: there is no bucket %q at %s", b.Path(), b.name, b.core.EndpointURL())
	case r.StatusCode == http.StatusNotFound: // of an object or an upload
		return fmt.Errorf("%s: %s: %w", b.Path(), name, fs.ErrNotExist)
	case r.StatusCode == http.StatusPreconditionFailed || r.Code == "ConditionalRequestConflict":
		return fmt.Errorf("%s: %s: %w", b.Path(), name, fs.ErrExist)
	case r.StatusCode == http.StatusForbidden || r.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%s: %s: %s refuses access, %s: see AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and who may use the bucket: %w",
			b.Path(), name, b.core.EndpointURL(), r.Code, fs.ErrPermission)
	}
	return fmt.Errorf("%s: %s: %s: %s (HTTP %d)", b.Path(), name, r.Code, r.Message, r.StatusCode)
}
