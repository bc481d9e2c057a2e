package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Client talks to one hub. Its methods may be called from several goroutines.
type Client struct {
	Endpoint string // without a slash at its end
	Cache    string // the folder with models--ORG--NAME
	Offline  bool   // take what the cache has, and ask nobody

	// Connections is how many files are fetched at a time; 0 means DefaultConnections.
	Connections int
	// Notify is told, in a sentence, what is waited for or done again; nil for nobody.
	Notify func(string)
	// Progress is told of bytes that arrive; nil for nobody.
	Progress Progress

	// Glance: of Lazy's files next to nothing will be read, and no weights written: small tensors come by themselves, unchecked.
	Glance bool

	token, tokenFrom string // where it comes from, for messages
	http             *http.Client
	sleep            func(context.Context, time.Duration) error
	small, mostSmall int64 // smallTensor, mostSmall
}

// DefaultConnections is that of huggingface_hub.
const DefaultConnections = 8

// Progress receives what a download is doing.
type Progress interface {
	Stage(name string, total int64) // total is in bytes
	Item(name string)
	Add(n int64)
	Done()
}

type silent struct{}

func (silent) Stage(string, int64) {}
func (silent) Item(string)         {}
func (silent) Add(int64)           {}
func (silent) Done()               {}

func (c *Client) progress() Progress {
	if c.Progress == nil {
		return silent{}
	}
	return c.Progress
}

func (c *Client) notify(format string, args ...any) {
	if c.Notify != nil {
		c.Notify(fmt.Sprintf(format, args...))
	}
}

// A StatusError reports an answer that is none of those that were hoped for.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string { return "hub: " + e.Message }

// sleep waits, or until ctx is done.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Limits of patience.
const (
	maxAttempts   = 6 // in a row that bring no byte
	firstWait     = time.Second
	maxWait       = 30 * time.Second // between attempts
	maxRetryAfter = 15 * time.Minute // that a server may ask for
	maxIdle       = 60 * time.Second // without a byte, until a connection is given up
)

// retry counts the attempts at one thing.
type retry struct {
	c        *Client
	what     string
	attempts int
}

// wait comes after a failed attempt. It returns an error if there should be no other, or ctx is done; after is what the server has
// asked for, 0 if nothing.
func (r *retry) wait(ctx context.Context, cause error, after time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r.attempts++
	if r.attempts >= maxAttempts {
		return fmt.Errorf("hub: %s: %w, %d times in a row", r.what, cause, r.attempts)
	}
	d := min(firstWait<<(r.attempts-1), maxWait)
	if after > 0 {
		d = after
	}
	if d > maxRetryAfter {
		return fmt.Errorf("hub: %s: %w; the server asks to come back in %s", r.what, cause, d)
	}
	r.c.notify("%s: %v: trying again in %s", r.what, cause, d)
	return r.c.sleep(ctx, d)
}

// get asks for an address of the hub until there is an answer, and returns one of status 200 or 206. want are the bytes
// that are wanted; without an end, to the last. ref is for messages.
func (c *Client) get(ctx context.Context, ref Ref, address string, want span, r *retry) (*http.Response, error) {
	if c.Offline {
		return nil, fmt.Errorf("hub: %s: HF_HUB_OFFLINE is set: nothing is asked for", r.what)
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, fmt.Errorf("hub: %s: %w", r.what, err)
		}
		req.Header.Set("User-Agent", "llmq")
		req.Header.Set("Accept-Encoding", "identity") // else the length would not be known, nor ranges be of the file
		switch {
		case want.hi > 0:
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", want.lo, want.hi-1))
		case want.lo > 0:
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", want.lo))
		}
		if c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := c.http.Do(req)
		var after time.Duration
		switch {
		case err != nil:
			if refused, ok := errors.AsType[*redirectError](err); ok {
				return nil, fmt.Errorf("hub: %s: %w", r.what, refused)
			}
			err = plainError(err)
		case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusPartialContent:
			return resp, nil
		case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout, resp.StatusCode >= 500:
			after = retryAfter(resp.Header.Get("Retry-After"), time.Now())
			err = errors.New(hostOf(resp) + " answers " + resp.Status)
			resp.Body.Close()
		default:
			err := c.explain(ref, r.what, resp)
			resp.Body.Close()
			return nil, err
		}
		if err := r.wait(ctx, err, after); err != nil {
			return nil, err
		}
	}
}

// plainError drops the address, whose query may be signed for the bearer.
func plainError(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		if parsed, e := url.Parse(u.URL); e == nil {
			return fmt.Errorf("%s: %w", parsed.Host, u.Err)
		}
		return u.Err
	}
	return err
}

func hostOf(resp *http.Response) string { return resp.Request.URL.Host }

// retryAfter reads a header that gives seconds or a time; 0 if it gives neither.
func retryAfter(header string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseInt(header, 10, 32); err == nil {
		return time.Duration(max(seconds, 0)) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(at.Sub(now), 0).Round(time.Second)
	}
	return 0
}

// explain says what an answer that is a refusal means, and what to do.
func (c *Client) explain(ref Ref, what string, resp *http.Response) error {
	page := c.Endpoint + "/" + ref.Repo
	said := strings.TrimSpace(resp.Header.Get("X-Error-Message"))
	token := "no token is given; put one that may read it into HF_TOKEN"
	if c.token != "" {
		token = "the token of " + c.tokenFrom + " may not read it"
	}
	var msg string
	code, kind := resp.StatusCode, resp.Header.Get("X-Error-Code")
	asked, err := url.Parse(c.Endpoint)
	switch {
	case err != nil || asked.Host != hostOf(resp):
		msg = fmt.Sprintf("%s: %s answers %s", what, hostOf(resp), resp.Status)
	case kind == "GatedRepo":
		msg = fmt.Sprintf("%s: the repository is gated: visit %s to be given access; %s", ref, page, token)
	case kind == "RevisionNotFound":
		msg = fmt.Sprintf("%s: the repository has no revision %q: see %s", ref.Repo, ref.Revision, page)
	case kind == "EntryNotFound":
		msg = fmt.Sprintf("%s: the repository has no such file", what)
	case kind == "RepoNotFound" && c.token == "", code == http.StatusUnauthorized && c.token == "":
		// What is private the hub does not admit to have.
		msg = fmt.Sprintf("%s: no such repository, or it is private or gated: visit %s; %s", ref, page, token)
	case kind == "RepoNotFound", code == http.StatusNotFound:
		msg = fmt.Sprintf("%s: no such repository or revision, or none that the token may see: visit %s", ref, page)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		msg = fmt.Sprintf("%s: %s answers %s: visit %s to be given access; %s", ref, hostOf(resp), resp.Status, page, token)
	default:
		msg = fmt.Sprintf("%s: %s answers %s", what, hostOf(resp), resp.Status)
	}
	if said != "" {
		msg += fmt.Sprintf(" (it says %.200q)", said)
	}
	return &StatusError{code, msg}
}

// idleReader ends a transfer that brings nothing for maxIdle.
type idleReader struct {
	io.Reader
	timer *time.Timer
}

// withoutIdling returns body's reader, and a function that ends the watch over it. cancel ends the transfer.
func withoutIdling(body io.Reader, cancel func()) (io.Reader, func()) {
	t := time.AfterFunc(maxIdle, cancel)
	return &idleReader{body, t}, func() { t.Stop() }
}

func (r *idleReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.timer.Reset(maxIdle)
	}
	return n, err
}
