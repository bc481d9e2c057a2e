package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/llmq/llmq/internal/s3test"
)

// testClock passes the time of a test: who waits moves it on, and leases are renewed when the test does it.
type testClock struct {
	mu     sync.Mutex
	ahead  time.Duration
	waited func(d time.Duration) // may be nil
}

func (c *testClock) clock() clock {
	return clock{
		func() time.Time {
			c.mu.Lock()
			defer c.mu.Unlock()
			return time.Now().Add(c.ahead)
		},
		func(ctx context.Context, d time.Duration) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			c.mu.Lock()
			c.ahead += d
			waited := c.waited
			c.mu.Unlock()
			if waited != nil {
				waited(d)
			}
			return nil
		},
		func(ctx context.Context, _ time.Duration) error {
			<-ctx.Done()
			return ctx.Err()
		},
	}
}

// said is what a user is told.
type said struct {
	mu   sync.Mutex
	text string
}

func (s *said) say(message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text += message + "\n"
}

const testLocation = bucketScheme + s3test.Bucket + "/runs/one"

// tryBucket opens a bucket for a test, with parts of 1 MiB.
func tryBucket(t *testing.T, ctx context.Context, c *testClock, s *said, parts []Part) (*Bucket, error) {
	t.Helper()
	b, err := newBucket(ctx, testLocation, s.say)
	if err != nil {
		t.Fatal(err)
	}
	b.clock, b.partBytes, b.heldBytes = c.clock(), 1<<20, 2<<20
	return openBucket(b, parts)
}

func newTestBucket(t *testing.T) *Bucket {
	t.Helper()
	b, err := tryBucket(t, t.Context(), &testClock{}, &said{}, parts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// pattern is so many bytes.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7 >> 3)
	}
	return b
}

// TestBucket: values of all sizes around that of parts come back, here and to a process that opens the bucket later.
func TestBucket(t *testing.T) {
	s := s3test.Start(t)
	b := newTestBucket(t)
	want := map[string][]byte{}
	for name, n := range map[string]int{"empty": 0, "one": 1, "layer": 1000, "full": 1<<20 - trailerSize, "more": 1 << 20, "states": 3<<20 + 12345} {
		want[name] = pattern(n)
		put(t, b, name, want[name])
	}
	put(t, b, "one", []byte("another")) // replaces it
	want["one"] = []byte("another")
	if err := b.Note(&Standing{Layers: 7}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for name, content := range want {
			if got, err := get(b, name); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(content), err)
			}
		}
		names, err := b.Names()
		if err != nil || !slices.Equal(names, []string{"empty", "full", "layer", "more", "one", "states"}) {
			t.Errorf("values %q, %v", names, err)
		}
		o, err := Look(t.Context(), testLocation)
		if err != nil || o.Layers != 7 || !o.Working || o.Noted.IsZero() || o.Bytes != int64(len(s.Get(t, "runs/one/states.value")))+1<<20+1<<20+7+1000+5*int64(trailerSize)-int64(trailerSize) {
			t.Errorf("overview: %+v, %v", o, err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if o, err := Look(t.Context(), testLocation); err != nil || o.Working {
			t.Errorf("nobody works: %+v, %v", o, err)
		}
		b = newTestBucket(t)
	}
	if err := b.Delete("one", "absent", "more"); err != nil {
		t.Error(err)
	}
	if _, err := get(b, "one"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a deleted value: %v", err)
	}
	for _, key := range s.Keys(t) {
		if !strings.HasPrefix(key, "runs/one/") {
			t.Errorf("object %q", key)
		}
	}
}

// TestBucketList: more objects than fit a page of a list.
func TestBucketList(t *testing.T) {
	s := s3test.Start(t)
	b := newTestBucket(t)
	for i := range 1001 {
		s.Put(t, fmt.Sprintf("runs/one/v%04d.value", i), nil)
	}
	s.Put(t, "runs/one2/v.value", nil) // another run's
	if names, err := b.Names(); err != nil || len(names) != 1001 || names[1000] != "v1000" {
		t.Errorf("%d values, %v", len(names), err)
	}
}

// TestBucketUnfinished: nothing is seen of a value before Commit, nor after Abort.
func TestBucketUnfinished(t *testing.T) {
	s := s3test.Start(t)
	b := newTestBucket(t)
	put(t, b, "a", []byte("old"))
	before := s.Keys(t)
	for _, name := range []string{"a", "b"} {
		w, err := b.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, 5<<19)) // two parts and a half
		if got, err := get(b, "a"); err != nil || string(got) != "old" {
			t.Errorf("while it is written: %q, %v", got, err)
		}
		w.Abort()
		if w.Commit() == nil {
			t.Error("an aborted value is committed")
		}
	}
	if got, err := get(b, "a"); err != nil || string(got) != "old" || !slices.Equal(s.Keys(t), before) {
		t.Errorf("after all: %q, %v, %q", got, err, s.Keys(t))
	}
	if n := uploads(t, b); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
}

// uploads counts the uploads that are not complete.
func uploads(t *testing.T, b *Bucket) int {
	t.Helper()
	page, err := b.bucket.core.ListMultipartUploads(t.Context(), s3test.Bucket, "runs/one/", "", "", "", 100)
	if err != nil {
		t.Fatal(err)
	}
	return len(page.Uploads)
}

// TestBucketSweep: what a killed process was putting is removed some time later; what may be under way is not.
func TestBucketSweep(t *testing.T) {
	s := s3test.Start(t)
	b := newTestBucket(t)
	for _, name := range []string{"a", "b"} {
		w, err := b.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(make([]byte, 1<<20))
	}
	for _, want := range []int{2, 0} {
		b.Close()
		b = newTestBucket(t)
		if n := uploads(t, b); n != want {
			t.Errorf("%d uploads are left, want %d", n, want)
		}
		s.Advance(abandonedAfter + time.Minute)
	}
}

// TestBucketDamaged: what is not what was written is absent, and can be written again.
func TestBucketDamaged(t *testing.T) {
	s := s3test.Start(t)
	for _, size := range []int{1400, 3 << 20} { // read once, and twice
		content := pattern(size)
		for what, damage := range map[string]func(b []byte) []byte{
			"flipped": func(b []byte) []byte { b[700] ^= 0x80; return b },
			"digest":  func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
			"cut":     func(b []byte) []byte { return b[:len(b)-1] },
			"empty":   func([]byte) []byte { return nil },
		} {
			b := newTestBucket(t)
			put(t, b, "a", content)
			b.Close()
			s.Put(t, "runs/one/a.value", damage(s.Get(t, "runs/one/a.value")))
			b = newTestBucket(t)
			if _, err := get(b, "a"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", what, err)
			}
			if got := b.Damaged(); !slices.Equal(got, []string{"a"}) || s.Get(t, "runs/one/a.value") != nil {
				t.Errorf("%s: damaged are %q", what, got)
			}
			put(t, b, "a", content)
			if got, err := get(b, "a"); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: made again: %v", what, err)
			}
			b.Close()
		}
	}
}

// TestBucketCut: a connection that breaks while a large value is read is made again, and what comes is checked.
func TestBucketCut(t *testing.T) {
	s := s3test.Start(t)
	b := newTestBucket(t)
	content := pattern(3<<20 + 77)
	put(t, b, "a", content)
	stored := s.Get(t, "runs/one/a.value")
	var ranges []string
	s.Trouble(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "a.value") {
			return false
		}
		ranges = append(ranges, r.Header.Get("Range"))
		if len(ranges) > 2 {
			return false
		}
		// All but the end of what is asked for.
		var from int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		w.Header().Set("Content-Length", fmt.Sprint(len(stored)-from))
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("ETag", `"x"`)
		w.Write(stored[from : from+1<<20])
		return s3test.Drop(w)
	})
	if got, err := get(b, "a"); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if len(ranges) != 3 || ranges[0] != "" || !strings.HasPrefix(ranges[2], "bytes=2097152-") {
		t.Errorf("asked for %q", ranges)
	}
	dropped := 0
	s.Trouble(func(w http.ResponseWriter, r *http.Request) bool {
		if dropped > 2 || r.Method != http.MethodGet {
			return false
		}
		dropped++
		return s3test.Drop(w)
	})
	if got, err := get(b, "a"); err != nil || !bytes.Equal(got, content) || dropped != 3 {
		t.Errorf("after %d drops: %d bytes, %v", dropped, len(got), err)
	}
}

// TestBucketPut: the first value of a name stays, whichever process brings it, and both learn their digests.
func TestBucketPut(t *testing.T) {
	s := s3test.Start(t)
	b := newTestBucket(t)
	other, err := Join(t.Context(), testLocation, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if other.ID() != b.ID() {
		t.Error("the bucket has two identities")
	}
	putNew := func(f Folder, content string) string {
		digest, err := f.Put("a", true, func(w io.Writer) error {
			_, err := io.WriteString(w, content)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	first := putNew(other, "one")
	if same := putNew(b, "one"); same != first {
		t.Errorf("digests %s and %s of the same", first, same)
	}
	if putNew(b, "two") == first {
		t.Error("another value has the same digest")
	}
	// A value that appears while another of its name is on its way: the store refuses the second.
	w, err := b.start("c", creation{})
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("late"))
	s.Put(t, "runs/one/c.value", []byte("early"))
	if err := w.Commit(); !errors.Is(err, fs.ErrExist) || string(s.Get(t, "runs/one/c.value")) != "early" {
		t.Errorf("the second value: %v, %q", err, s.Get(t, "runs/one/c.value"))
	}
	if got, err := get(b, "a"); err != nil || string(got) != "one" {
		t.Errorf("%q, %v", got, err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	if got, err := Look(t.Context(), testLocation); err != nil || !got.Working {
		t.Errorf("one who had joined ended the lease: %v", err)
	}
}

// TestBucketOtherRun: a bucket is refused to a run of anything else, and a prefix that holds something else is left alone.
func TestBucketOtherRun(t *testing.T) {
	s := s3test.Start(t)
	b := newTestBucket(t)
	b.Close()
	changed := slices.Clone(parts)
	changed[1].Digest += "x"
	_, err := OpenBucket(t.Context(), testLocation, changed, func(string) {})
	if other, ok := errors.AsType[*OtherRunError](err); !ok || !strings.Contains(err.Error(), "another calibration text:") || other.Path != testLocation {
		t.Errorf("got %v", err)
	}
	s.Put(t, "photos/cat.jpg", []byte("x"))
	before := s.Keys(t)
	for location, want := range map[string]string{
		"s3://" + s3test.Bucket + "/photos": `holds "cat.jpg"`,
		"s3://" + s3test.Bucket:             `holds "photos/cat.jpg"`,
		"s3://absent/x":                     `there is no bucket "absent"`,
		"s3://":                             "want s3://BUCKET/PREFIX",
		"s3://No_Bucket/x":                  "s3://No_Bucket/x",
	} {
		if _, err := OpenBucket(t.Context(), location, parts, func(string) {}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", location, err, want)
		}
		if _, err := Look(t.Context(), location); err == nil {
			t.Errorf("%s has an overview", location)
		}
	}
	if !slices.Equal(s.Keys(t), before) {
		t.Errorf("the bucket holds %q", s.Keys(t))
	}
}

// TestBucketLease: two processes do not work in one place; what a killed one has left runs out.
func TestBucketLease(t *testing.T) {
	s := s3test.Start(t)
	c1 := &testClock{}
	first, err := tryBucket(t, t.Context(), c1, &said{}, parts)
	if err != nil {
		t.Fatal(err)
	}
	// Another waits, and sees that the first is alive.
	c, heard := &testClock{}, &said{}
	c.waited = func(time.Duration) { first.bucket.renew(t.Context()) }
	_, err = tryBucket(t, t.Context(), c, heard, parts)
	host, _ := os.Hostname()
	if err == nil || !strings.Contains(err.Error(), "another process works there: process ") || !strings.Contains(err.Error(), host) {
		t.Errorf("twice: %v", err)
	}
	if !strings.Contains(heard.text, "works there, or was killed") {
		t.Errorf("said %q", heard.text)
	}
	// The first is killed: nothing is heard of it, and in the end the other takes over.
	c.waited = s.Advance
	second, err := tryBucket(t, t.Context(), c, heard, parts)
	if err != nil {
		t.Fatal(err)
	}
	if c.ahead < leaseTime {
		t.Errorf("the lease was taken after %v", c.ahead)
	}
	put(t, second, "a", []byte("second"))
	// It was not dead after all. When it is heard of, it is late, and learns it.
	c1.mu.Lock()
	c1.ahead = leaseTime
	c1.mu.Unlock()
	if _, err := first.Create("a"); !errors.Is(err, errLost) {
		t.Errorf("the first writes: %v", err)
	}
	if err := first.Delete("a"); !errors.Is(err, errLost) {
		t.Errorf("the first deletes: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if got, err := get(second, "a"); err != nil || string(got) != "second" {
		t.Errorf("%q, %v", got, err)
	}
	if err := second.bucket.renew(t.Context()); err != nil {
		t.Errorf("the first has ended the second's lease: %v", err)
	}
	second.Close()
	newTestBucket(t) // at once
}

// TestBucketAnswerLost: a lease that was written without an answer is ours all the same.
func TestBucketAnswerLost(t *testing.T) {
	s := s3test.Start(t)
	lose := func(n int) {
		s.Trouble(func(w http.ResponseWriter, r *http.Request) bool {
			if n == 0 || r.Method != http.MethodPut || !strings.HasSuffix(r.URL.Path, leaseName) {
				return false
			}
			n--
			data, _ := io.ReadAll(r.Body)
			s.Put(t, strings.TrimPrefix(r.URL.Path, "/"+s3test.Bucket+"/"), data)
			return s3test.Drop(w)
		})
	}
	lose(1)
	b := newTestBucket(t)
	lose(1)
	b.bucket.renew(t.Context())
	if err := b.bucket.renew(t.Context()); err != nil {
		t.Error(err)
	}
	put(t, b, "a", nil)
}

// TestBucketUnconditional: a store that takes no notice of conditions cannot keep two processes apart, and is refused.
func TestBucketUnconditional(t *testing.T) {
	s := s3test.Start(t)
	s.Trouble(func(_ http.ResponseWriter, r *http.Request) bool {
		r.Header.Del("If-None-Match")
		return false
	})
	if _, err := OpenBucket(t.Context(), testLocation, parts, func(string) {}); err == nil || !strings.Contains(err.Error(), "must know conditional writes") {
		t.Errorf("got %v", err)
	}
}

// TestBucketOutage: a store that is out of reach is waited for, as long as it pays, and a user knows.
func TestBucketOutage(t *testing.T) {
	s := s3test.Start(t)
	c, heard := &testClock{}, &said{}
	b, err := tryBucket(t, t.Context(), c, heard, parts)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	put(t, b, "a", []byte("before"))
	began := c.ahead
	// For ten seconds of the process's time nobody answers, or the store says that it is in trouble.
	for what, trouble := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"dropped": func(w http.ResponseWriter, _ *http.Request) bool { return s3test.Drop(w) },
		"503": func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		},
	} {
		heard.text = ""
		until := c.ahead + 10*time.Second
		s.Trouble(trouble)
		c.waited = func(time.Duration) {
			if c.ahead >= until {
				s.Trouble(nil)
			}
		}
		put(t, b, what, pattern(5<<19))
		if got, err := get(b, what); err != nil || !bytes.Equal(got, pattern(5<<19)) {
			t.Errorf("%s: %d bytes, %v", what, len(got), err)
		}
		if strings.Count(heard.text, "cannot be reached") != 1 || !strings.Contains(heard.text, "can be reached again after 1") {
			t.Errorf("%s: said %q", what, heard.text)
		}
	}
	if c.ahead-began < 20*time.Second {
		t.Errorf("waited %v", c.ahead-began)
	}
	// For ever: it is given up, and nothing is left half done.
	s.Trouble(func(w http.ResponseWriter, _ *http.Request) bool { return s3test.Drop(w) })
	c.waited, b.bucket.patience = nil, time.Minute
	if _, err := get(b, "a"); err == nil || !strings.Contains(err.Error(), "could not be reached for 1m") {
		t.Errorf("for ever: %v", err)
	}
	s.Trouble(nil)
	if got, err := get(b, "a"); err != nil || string(got) != "before" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
}

// TestBucketInterrupted: who waits for a store is not kept.
func TestBucketInterrupted(t *testing.T) {
	s := s3test.Start(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("interrupted")
	c := &testClock{waited: func(time.Duration) { cancel(stop) }}
	b, err := tryBucket(t, ctx, c, &said{}, parts)
	if err != nil {
		t.Fatal(err)
	}
	s.Trouble(func(w http.ResponseWriter, _ *http.Request) bool { return s3test.Drop(w) })
	if _, err := get(b, "a"); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
	s.Trouble(nil)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if o, err := Look(t.Context(), testLocation); err != nil || o.Working {
		t.Errorf("an interrupted process has kept its lease: %v", err)
	}
}

// TestBucketRefused: what a store refuses is said in words, at once.
func TestBucketRefused(t *testing.T) {
	s := s3test.Start(t)
	refuse := func(status int, code string) {
		s.Trouble(func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
			return true
		})
	}
	open := func() error {
		c := &testClock{waited: func(time.Duration) { t.Error("something is waited for") }}
		_, err := tryBucket(t, t.Context(), c, &said{}, parts)
		return err
	}
	refuse(http.StatusForbidden, "AccessDenied")
	if err := open(); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "refuses access, AccessDenied: see AWS_ACCESS_KEY_ID") {
		t.Errorf("403: %v", err)
	}
	refuse(http.StatusForbidden, "SignatureDoesNotMatch")
	if err := open(); !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "SignatureDoesNotMatch") {
		t.Errorf("signature: %v", err)
	}
	refuse(http.StatusBadRequest, "AuthorizationHeaderMalformed")
	if err := open(); err == nil || !strings.Contains(err.Error(), "AuthorizationHeaderMalformed: no (HTTP 400)") {
		t.Errorf("400: %v", err)
	}
	for name, value := range map[string]string{"AWS_ENDPOINT_URL": "ftp://x", "AWS_ACCESS_KEY_ID": ""} {
		old := os.Getenv(name)
		t.Setenv(name, value)
		if _, err := newBucket(t.Context(), testLocation, func(string) {}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
		t.Setenv(name, old)
	}
}

// TestPassing: what is tried again, and what is not.
func TestPassing(t *testing.T) {
	for err, want := range map[error]bool{
		errors.New("connection refused"):                              true,
		io.ErrUnexpectedEOF:                                           true,
		minio.ErrorResponse{Code: "SlowDown"}:                         true,
		minio.ErrorResponse{StatusCode: 500}:                          true,
		minio.ErrorResponse{StatusCode: 429}:                          true,
		minio.ErrorResponse{StatusCode: 501}:                          false,
		minio.ErrorResponse{StatusCode: 403}:                          false,
		minio.ErrorResponse{Code: "NoSuchBucket"}:                     false,
		minio.ErrorResponse{Code: "InvalidArgument"}:                  false,
		fmt.Errorf("x: %w", errLost):                                  false,
		errors.New("http: server gave HTTP response to HTTPS client"): false,
	} {
		if got := passing(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
