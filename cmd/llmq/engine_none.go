//go:build nonats

package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/store"
)

// engineOptions are those of runs on many machines, which this program was built without.
type engineOptions struct{}

func (engineOptions) AddFlags(*cobra.Command)                          {}
func (engineOptions) checkEngine(string) error                         { return nil }
func (engineOptions) many() bool                                       { return false }
func (engineOptions) describe(*quantizeOptions, pipeline.Recipe) error { return nil }

func (engineOptions) start(context.Context, *app, store.Folder, *pipeline.Plan) (ending, error) {
	panic("built without an engine")
}

func (engineOptions) startEval(context.Context, *app, *evalOptions, store.Folder, *eval.Options) (ending, error) {
	panic("built without an engine")
}

type ending interface {
	engine.Engine
	end(ctx context.Context, failed error)
}

func (*app) addWorker(*cobra.Command) {}
