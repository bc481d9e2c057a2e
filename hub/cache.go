package hub

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"github.com/llmq/llmq/internal/atomicfile"
)

// place is where a file goes, and how.
type place struct {
	content    string // its content, whole
	incomplete string // its content as far as it has arrived
	lock       string // held while it is on its way
	// link makes the content show under the file's name; nil where it does.
	link func() error
	// note is called when the content is there; nil for nothing.
	note func() error
}

// lockDelay is how often a lock that another process holds is tried.
const lockDelay = 100 * time.Millisecond

// lockFile waits for a lock, which the hub's other tools respect, and returns what releases it.
func (c *Client) lockFile(ctx context.Context, path, what string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("hub: %w", err)
	}
	l := flock.New(path)
	ok, err := l.TryLock()
	if err == nil && !ok {
		c.notify("%s: another process is fetching it: waiting", what)
		_, err = l.TryLockContext(ctx, lockDelay)
	}
	if err != nil {
		return nil, fmt.Errorf("hub: %s: %w", path, err)
	}
	return func() { l.Close() }, nil
}

// cachePlace is a file's place in the cache's layout.
func (c *Client) cachePlace(l *Listing, f File) place {
	content := filepath.Join(c.Cache, l.folder(), "blobs", string(f.Digest))
	name := filepath.Join(c.snapshot(l.Ref, l.Commit), filepath.FromSlash(f.Path))
	return place{
		content:    content,
		incomplete: content + ".incomplete",
		lock:       filepath.Join(c.Cache, ".locks", l.folder(), string(f.Digest)+".lock"),
		link:       func() error { return link(content, name) },
	}
}

// snapshot is the folder of a commit in the cache.
func (c *Client) snapshot(ref Ref, commit string) string {
	return filepath.Join(c.Cache, ref.folder(), "snapshots", commit)
}

// link makes name a relative link to content, so that the cache can be moved. Where the system allows no links (Windows, to most
// users), the content itself moves there, as huggingface_hub does it.
func link(content, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	target, err := filepath.Rel(filepath.Dir(name), content)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if old, err := os.Readlink(name); err == nil && old == target {
		return nil
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("hub: %w", err)
	}
	if err := os.Symlink(target, name); err != nil {
		if err := os.Rename(content, name); err != nil {
			return fmt.Errorf("hub: %w", err)
		}
	}
	return nil
}

// noteRevision writes down which commit a branch or tag stands for.
func (c *Client) noteRevision(l *Listing) error {
	if l.Revision == l.Commit {
		return nil
	}
	path := c.refPath(l.Ref)
	if b, err := os.ReadFile(path); err == nil && string(b) == l.Commit {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	return writeFile(path, l.Commit)
}

func (c *Client) refPath(ref Ref) string {
	return filepath.Join(c.Cache, ref.folder(), "refs", filepath.FromSlash(ref.Revision))
}

// writeFile writes a whole file or leaves what was there.
func writeFile(path, content string) error {
	f, err := atomicfile.Create(path, int64(len(content)), atomicfile.Options{Overwrite: true})
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	defer f.Abort() // no effect after Commit
	if _, err := f.WriteAt([]byte(content), 0); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if err := f.Commit(); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	return nil
}

// offline finds a revision in the cache as it was when it was last asked for.
func (c *Client) offline(ref Ref) (dir string, err error) {
	commit := ref.Revision
	if !commitHash.MatchString(commit) {
		b, err := os.ReadFile(c.refPath(ref))
		commit = strings.TrimSpace(string(b))
		if err != nil || !commitHash.MatchString(commit) {
			return "", fmt.Errorf("hub: %s: it is not in the cache, %s, and HF_HUB_OFFLINE is set: nothing is asked for", ref, c.Cache)
		}
	}
	dir = c.snapshot(ref, commit)
	if _, err := os.Stat(dir); err != nil {
		return "", fmt.Errorf("hub: %s: its commit %s is not in the cache, and HF_HUB_OFFLINE is set: %w", ref, commit, err)
	}
	return dir, nil
}
