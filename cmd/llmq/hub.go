package main

import (
	"context"
	"fmt"

	"github.com/llmq/llmq/hub"
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
