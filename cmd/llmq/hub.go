package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/hub"
	"github.com/llmq/llmq/pipeline"
)

const connectionsUsage = "fetch `N` files at a time"

// hub returns a client of the hub that tells the user what it does.
func (a *app) hub() (*hub.Client, error) {
	c, err := hub.FromEnvironment()
	if err != nil {
		return nil, err
	}
	c.Notify = func(s string) { fmt.Fprintf(a.stderr, "llmq: %s\n", s) }
	c.Progress = a.progress()
	return c, nil
}

// local returns the path of a checkpoint: the path itself, or the folder of the hub's cache where hf:ORG/NAME, which is
// fetched first, is then.
func (a *app) local(ctx context.Context, path string) (string, error) {
	if !hub.IsName(path) {
		return path, nil
	}
	ref, err := hub.ParseRef(path)
	if err != nil {
		return "", &usageError{err}
	}
	c, err := a.hub()
	if err != nil {
		return "", err
	}
	return c.Snapshot(ctx, ref)
}

// lazySource is a checkpoint of the hub whose weights come when they are needed.
type lazySource struct {
	*hf.Checkpoint
	lazy *hub.Lazy
}

func (s *lazySource) Close() error { return errors.Join(s.Checkpoint.Close(), s.lazy.Close()) }

// openLazily opens hf:ORG/NAME without fetching more of the weights than is asked for. What comes is kept in folder, or, if that is "",
// in a folder without a name beside the path beside, which goes with the process. glance: see hub.Client.
func (a *app) openLazily(ctx context.Context, name string, opt hf.Options, folder, beside string, glance bool) (_ pipeline.Source, err error) {
	ref, err := hub.ParseRef(name)
	if err != nil {
		return nil, &usageError{err}
	}
	c, err := a.hub()
	if err != nil {
		return nil, err
	}
	c.Glance = glance
	temporary := folder == ""
	if temporary {
		if folder, err = os.MkdirTemp(beside, ".llmq-checkpoint-"); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	}
	z, err := c.Lazy(ctx, ref, folder)
	if err != nil {
		return nil, err
	}
	opt.Lazy, opt.Identity, opt.Check = z.Open, z.Identity(), z.Check
	src, err := a.openFolder(z.Dir(), opt)
	if err != nil {
		return nil, errors.Join(err, z.Close())
	}
	return &lazySource{src.(*hf.Checkpoint), z}, nil // as hf.Open returns it
}

// openHeaders opens a source of which little more than the headers will be read: one of the hub is not fetched, if that can be.
func (a *app) openHeaders(ctx context.Context, path string, opt hf.Options) (pipeline.Source, error) {
	if hub.IsName(path) && hub.Lazily && opt.LoRA == "" {
		src, err := a.openLazily(ctx, path, opt, "", "", true)
		if _, whole := errors.AsType[*hub.WholeError](err); !whole {
			return src, err
		}
	}
	return a.openSource(ctx, path, opt)
}
