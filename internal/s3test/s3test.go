// Package s3test is a store that speaks S3, in the process of a test (github.com/johannesboyne/gofakes3), whose time and troubles
// the test makes.
package s3test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

// Bucket is the name of the bucket that there is.
const Bucket = "models"

// Server is the store.
type Server struct {
	URL     string
	backend *s3mem.Backend

	mu      sync.Mutex
	ahead   time.Duration
	trouble func(w http.ResponseWriter, r *http.Request) bool
}

// Start starts a store with an empty bucket, and has the environment lead there.
func Start(t *testing.T) *Server {
	t.Helper()
	s := &Server{}
	s.backend = s3mem.New(s3mem.WithTimeSource(s))
	if err := s.backend.CreateBucket(Bucket); err != nil {
		t.Fatal(err)
	}
	fake := gofakes3.New(s.backend, gofakes3.WithTimeSource(s), gofakes3.WithTimeSkewLimit(0)).Server()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		trouble := s.trouble
		s.mu.Unlock()
		w.Header().Set("Date", s.Now().UTC().Format(http.TimeFormat))
		if trouble == nil || !trouble(w, r) {
			fake.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(server.Close)
	s.URL = server.URL
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": s.URL, "AWS_ENDPOINT_URL_S3": "", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_SESSION_TOKEN": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_PROFILE": "",
		"AWS_SHARED_CREDENTIALS_FILE": filepath.Join(t.TempDir(), "absent"), "no_proxy": "127.0.0.1",
	} {
		t.Setenv(name, value)
		if value == "" {
			os.Unsetenv(name) // until the test ends
		}
	}
	return s
}

// Now is the store's time. It implements gofakes3.TimeSource, as Since does.
func (s *Server) Now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Add(s.ahead)
}

// Since is the time since t.
func (s *Server) Since(t time.Time) time.Duration { return s.Now().Sub(t) }

// Advance lets time pass at the store.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

// Trouble has f see all requests first; the store sees those of which f says false. nil ends the trouble.
func (s *Server) Trouble(f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = f
}

// Drop ends the connection of a request without an answer.
func Drop(w http.ResponseWriter) bool {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
	return true
}

// Get returns an object's bytes, nil if there is none.
func (s *Server) Get(t *testing.T, key string) []byte {
	t.Helper()
	o, err := s.backend.GetObject(Bucket, key, nil)
	if gofakes3.HasErrorCode(err, gofakes3.ErrNoSuchKey) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer o.Contents.Close()
	b, err := io.ReadAll(o.Contents)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Put makes or replaces an object.
func (s *Server) Put(t *testing.T, key string, data []byte) {
	t.Helper()
	meta := map[string]string{"Last-Modified": s.Now().UTC().Format(http.TimeFormat)}
	if _, err := s.backend.PutObject(Bucket, key, meta, bytes.NewReader(data), int64(len(data)), nil); err != nil {
		t.Fatal(err)
	}
}

// Keys lists all objects.
func (s *Server) Keys(t *testing.T) (keys []string) {
	t.Helper()
	list, err := s.backend.ListBucket(Bucket, nil, gofakes3.ListBucketPage{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Contents {
		keys = append(keys, c.Key)
	}
	return keys
}
