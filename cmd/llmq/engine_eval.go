//go:build !nonats

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/hub"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/store"
)

// evalCommand is what a worker must know to open the models of an evaluation.
type evalCommand struct {
	Model, Base             string // Base is "" without one
	ModelDigest, BaseDigest string // pipeline.SourceDigest
}

// startEval starts the engine of an evaluation in a work folder.
func (o *engineOptions) startEval(ctx context.Context, a *app, opts *evalOptions, work store.Folder, eopt *eval.Options) (*coordinator, error) {
	c := evalCommand{Model: opts.Model, Base: opts.Base}
	for _, path := range []*string{&c.Model, &c.Base} {
		if *path == "" || hub.IsName(*path) { // the hub's name is the same everywhere
			continue
		}
		var err error
		if *path, err = filepath.Abs(*path); err != nil {
			return nil, err
		}
	}
	quiet := *a
	quiet.stderr = discard{}
	worker, err := quiet.evaluating(ctx, &c, work, eval.WorkerOptions{Memory: eopt.Memory, TempDir: eopt.TempDir})
	if err != nil {
		return nil, err
	}
	if o.command, err = engine.OfKind(evalRun, &c); err != nil {
		return nil, errors.Join(err, worker.close())
	}
	return o.coordinate(ctx, a, opts.Work, work, worker)
}

// evaluating takes part in an evaluation of the models of a command. It refuses others than those whose digests that has, and notes
// those that it lacks.
func (a *app) evaluating(ctx context.Context, c *evalCommand, values store.Shared, opt eval.WorkerOptions) (*participant, error) {
	m, err := a.openAs(ctx, c.Model, &c.ModelDigest)
	if err != nil {
		return nil, err
	}
	p := &participant{model: m.Source.Name(), close: m.Source.Close}
	var base *model.Model
	if c.Base != "" {
		if base, err = a.openAs(ctx, c.Base, &c.BaseDigest); err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.close = func() error { return errors.Join(m.Source.Close(), base.Source.Close()) }
	}
	p.make = engine.Kinds[engine.Worker]{
		eval.JobKind: func(ctx context.Context, spec []byte) (engine.Worker, error) {
			return eval.NewWorker(ctx, m, base, spec, values, opt)
		},
	}.Make
	return p, nil
}

// openAs opens a model whose source has a digest, which it notes where it is "".
func (a *app) openAs(ctx context.Context, path string, digest *string) (*model.Model, error) {
	src, err := a.openSource(ctx, path, hf.Options{})
	if err != nil {
		return nil, err
	}
	d, err := pipeline.SourceDigest(src)
	if err == nil && *digest != "" && d != *digest {
		err = fmt.Errorf("%s: is not the model that the run is about", src.Name())
	}
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	*digest = d
	m, err := arch.Open(src)
	if err != nil {
		return nil, errors.Join(err, src.Close())
	}
	return m, nil
}
