package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/internal/atomicfile"
)

// Snapshot brings the files of a model that are needed into the cache, and returns the folder that shows them.
func (c *Client) Snapshot(ctx context.Context, ref Ref) (dir string, err error) {
	if c.Offline {
		return c.offline(ref)
	}
	l, err := c.List(ctx, ref)
	if err != nil {
		return "", err
	}
	if err := c.noteRevision(l); err != nil {
		return "", err
	}
	t := c.tree(l)
	return t.dir, t.download(ctx)
}

// tree is a listing in the cache.
func (c *Client) tree(l *Listing) *tree {
	dir := c.snapshot(l.Ref, l.Commit)
	return &tree{
		c: c, l: l, dir: dir, root: filepath.Join(c.Cache, l.folder()),
		place: func(f File) place { return c.cachePlace(l, f) },
		has: func(f File, _ place) (bool, error) {
			info, err := os.Stat(filepath.Join(dir, filepath.FromSlash(f.Path)))
			return err == nil && info.Size() == f.Bytes, nil
		},
	}
}

// Folder writes the files of a model that are needed into a folder. Those that the cache has are copied. A file in the folder that
// is not the repository's is an error, unless force is set.
func (c *Client) Folder(ctx context.Context, ref Ref, dir string, force bool) error {
	if c.Offline {
		return fmt.Errorf("hub: %s: HF_HUB_OFFLINE is set: nothing is asked for", ref)
	}
	l, err := c.List(ctx, ref)
	if err != nil {
		return err
	}
	if err := begin(dir); err != nil {
		return err
	}
	t := &tree{
		c: c, l: l, dir: dir, root: dir,
		place: func(f File) place { return folderPlace(dir, l, f) },
		has:   func(f File, p place) (bool, error) { return c.inFolder(ctx, dir, f, p, force) },
	}
	return t.download(ctx)
}

// tree is a listing on its way to a folder.
type tree struct {
	c     *Client
	l     *Listing
	dir   string // shows the files
	root  string // holds all that is written, for its room
	place func(File) place
	has   func(File, place) (bool, error)
}

// download fetches what is needed: the small files and the index first, which says what else.
func (t *tree) download(ctx context.Context) error {
	files, err := t.l.beside()
	if err != nil {
		return err
	}
	if err := t.ensure(ctx, files); err != nil {
		return err
	}
	if files, err = t.weights(); err != nil {
		return err
	}
	return t.ensure(ctx, files)
}

// weights lists the files of weights, when those beside them are there.
func (t *tree) weights() ([]File, error) {
	var index []byte
	if name := t.l.index(); name != "" {
		var err error
		if index, err = os.ReadFile(filepath.Join(t.dir, name)); err != nil {
			return nil, fmt.Errorf("hub: %w", err)
		}
	}
	return t.l.weights(index)
}

// ensure fetches those of files that are not there.
func (t *tree) ensure(ctx context.Context, files []File) error {
	var missing []File
	var left int64 // bytes to fetch
	for _, f := range files {
		p := t.place(f)
		there, err := t.has(f, p)
		if err != nil {
			return err
		}
		if there {
			continue
		}
		missing = append(missing, f)
		if info, err := os.Stat(p.content); err == nil && p.link != nil && info.Size() == f.Bytes {
			continue // it only lacks its link
		}
		left += f.Bytes
		if info, err := os.Stat(p.incomplete); err == nil {
			left -= min(info.Size(), f.Bytes)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if err := os.MkdirAll(t.root, 0o755); err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	if free, known := atomicfile.Free(t.root); known && uint64(left) > free {
		return fmt.Errorf("hub: %s: its files need %d bytes more, %s has %d bytes free", t.l.Ref, left, t.root, free)
	}
	progress := t.c.progress()
	progress.Stage("download", left)
	defer progress.Done()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(cmp.Or(t.c.Connections, DefaultConnections))
	for _, f := range missing {
		group.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			progress.Item(f.Path)
			return t.bring(ctx, f)
		})
	}
	return group.Wait()
}

// bring makes one file be there.
func (t *tree) bring(ctx context.Context, f File) error {
	p := t.place(f)
	release, err := t.c.lockFile(ctx, p.lock, t.l.Repo+": "+f.Path)
	if err != nil {
		return err
	}
	defer release()
	add := t.c.progress().Add
	// Of the cache only, and perhaps since a moment ago: a folder's other content was refused, or is to be replaced.
	if info, err := os.Stat(p.content); p.link == nil || err != nil || info.Size() != f.Bytes {
		if err := os.MkdirAll(filepath.Dir(p.content), 0o755); err != nil {
			return fmt.Errorf("hub: %w", err)
		}
		if err := os.MkdirAll(filepath.Dir(p.incomplete), 0o755); err != nil {
			return fmt.Errorf("hub: %w", err)
		}
		if p.link == nil {
			if err := t.copyCached(ctx, f, p); err != nil {
				return err
			}
		}
		if err := t.c.fetch(ctx, t.l, f, p.incomplete, add); err != nil {
			return err
		}
		if err := os.Rename(p.incomplete, p.content); err != nil {
			return fmt.Errorf("hub: %w", err)
		}
	}
	if p.link != nil {
		if err := p.link(); err != nil {
			return err
		}
	}
	if p.note != nil {
		return p.note()
	}
	return nil
}

// copyCached begins a file of a folder with what the cache has of it; fetch checks that like anything else that lies there.
func (t *tree) copyCached(ctx context.Context, f File, p place) error {
	if info, err := os.Stat(p.incomplete); err == nil && info.Size() > 0 {
		return nil
	}
	cached, err := os.Open(t.c.cachePlace(t.l, f).content)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	defer cached.Close()
	file, err := os.Create(p.incomplete)
	if err != nil {
		return fmt.Errorf("hub: %w", err)
	}
	n, err := copyAll(ctx, file, cached)
	t.c.progress().Add(min(n, f.Bytes))
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("hub: %s: %w", p.incomplete, err)
	}
	return nil
}
