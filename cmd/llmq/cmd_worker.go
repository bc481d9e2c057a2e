//go:build !nonats

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/engine/cluster"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/store"
)

type workerOptions struct {
	natsOptions
	Work       string
	Checkpoint string
	Base       string
	Memory     byteSize
	TempDir    string
	Threads    int
}

// addWorker adds the command worker.
func (a *app) addWorker(root *cobra.Command) {
	var opts workerOptions
	cmd := &cobra.Command{
		Use:   "worker URL --work FOLDER",
		Short: "Take part in a run of llmq quantize or llmq eval on another machine",
		Long: `Takes part in the run that llmq quantize, or llmq eval, with --work FOLDER --listen HOST:PORT does on another machine, until it is
over. FOLDER is the same, as this machine sees it; so is the checkpoint, unless --checkpoint says where it is here, and --base where
the base model is. The file, or the figures, do not depend on how many workers there are, nor on when they come and go. The program must be of the same version, for the same kind of processor; one that
can do more instructions than the coordinator's does without them.`,
		Example: `  export LLMQ_TOKEN=$(openssl rand -hex 16)   # the same everywhere
  llmq quantize Qwen3-8B -o qwen3-8b.gguf --calib wiki.train.txt --work /nfs/work --listen :4222
  llmq worker nats://head:4222 --work /nfs/work`,
		Args: exactArgs("URL"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runWorker(cmd.Context(), args[0], opts) },
	}
	f := cmd.Flags()
	f.StringVar(&opts.Work, "work", "", "`FOLDER` of the run, which all machines share, or s3://bucket/prefix (required)")
	f.StringVar(&opts.Checkpoint, "checkpoint", "", "`MODEL` where the checkpoint, or the model that is evaluated, is here (default: where the coordinator has it)")
	f.StringVar(&opts.Base, "base", "", "`MODEL` where the base model of llmq eval is here (default: where the coordinator has it)")
	opts.Memory = defaultMemory
	f.Var(&opts.Memory, "memory", memoryUsage)
	f.StringVar(&opts.TempDir, "temp", "", "`FOLDER` for hidden states that --memory does not hold (default: the system's)")
	f.IntVar(&opts.Threads, "threads", 0, "use `N` processors (0: all)")
	opts.natsOptions.AddFlags(cmd)
	root.AddCommand(cmd)
}

func (a *app) runWorker(ctx context.Context, url string, opts workerOptions) error {
	if opts.Work == "" {
		return usagef("no work folder given: --work FOLDER, that of llmq quantize or llmq eval")
	}
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	defer kernels.Spare()()
	values, err := store.Join(ctx, opts.Work, func(message string) { fmt.Fprintln(a.stderr, "llmq:", message) })
	if err != nil {
		return err
	}
	defer values.Close()
	b, err := build()
	if err != nil {
		return err
	}
	var taking *participant
	w := cluster.Worker{Connection: opts.connection(url), Run: values.ID(), Name: workerName(), Build: b, Values: values,
		Log: func(message string) { fmt.Fprintf(a.stderr, "llmq: %s\n", message) }}
	w.Ready = func(tier string, command []byte) (err error) {
		if err := takeTier(tier); err != nil {
			return err
		}
		if taking, err = a.runKinds(&opts, values).Make(ctx, command); err == nil {
			fmt.Fprintf(a.stderr, "llmq: %s takes part in the run on %s\n", w.Name, taking.model)
		}
		return err
	}
	w.Make = func(ctx context.Context, job []byte) (engine.Worker, error) { return taking.make(ctx, job) }
	fmt.Fprintf(a.stderr, "llmq: waiting for the run at %s\n", w.Where())
	waiting, over := context.WithCancelCause(ctx)
	defer over(nil)
	go untilDone(waiting, opts.Work, over)
	err = w.Work(waiting)
	if context.Cause(waiting) == errDone {
		err = nil
	}
	if taking != nil {
		err = errors.Join(err, taking.close())
	}
	if err == nil {
		fmt.Fprintln(a.stderr, "llmq: the run is over")
	}
	return err
}

// errDone ends a worker that came when the run was over: nobody is there to tell it.
var errDone = errors.New("the run is done")

// untilDone ends ctx when the run in a folder is done, and nobody works there any more.
func untilDone(ctx context.Context, folder string, end context.CancelCauseFunc) {
	const every = 5 * time.Second // a look holds the folder for a moment
	for {
		if o, err := store.Look(ctx, folder); err == nil && o.Done() && !o.Working {
			end(errDone)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

// takeTier has this process compute with a coordinator's instructions.
func takeTier(name string) error {
	want, err := kernels.ParseTier(name)
	if err != nil {
		return err
	}
	if tiers := kernels.Tiers(); !slices.Contains(tiers, want) {
		tiers = slices.DeleteFunc(tiers, func(t kernels.Tier) bool { return t > want }) // the coordinator may lack those above
		return fmt.Errorf("the run uses instructions that this processor has not got, %s: start it again, coordinator and workers, with %s=%s",
			want, kernels.TierEnv, slices.Max(tiers))
	}
	kernels.SetTier(want)
	return nil
}

// runKinds are the kinds of runs that a worker can take part in, each with how it opens what a coordinator says of one.
func (a *app) runKinds(opts *workerOptions, values store.Shared) engine.Kinds[*participant] {
	return engine.Kinds[*participant]{
		quantizeRun: func(ctx context.Context, command []byte) (*participant, error) {
			if opts.Base != "" {
				return nil, usagef("--base is where the base model of a run of llmq eval is; this one is of llmq quantize")
			}
			src, recipe, err := a.openRun(ctx, command, opts.Checkpoint)
			if err != nil {
				return nil, err
			}
			return quantizing(src, recipe, values, pipeline.WorkerOptions{Memory: int64(opts.Memory), TempDir: opts.TempDir}), nil
		},
		evalRun: func(ctx context.Context, command []byte) (*participant, error) {
			var c evalCommand
			if err := json.Unmarshal(command, &c); err != nil {
				return nil, fmt.Errorf("what the coordinator says of the run: %w", err)
			}
			if opts.Base != "" && c.Base == "" {
				return nil, usagef("--base: the run has no base model")
			}
			c.Model, c.Base = cmp.Or(opts.Checkpoint, c.Model), cmp.Or(opts.Base, c.Base)
			return a.evaluating(ctx, &c, values, eval.WorkerOptions{Memory: int64(opts.Memory), TempDir: opts.TempDir})
		},
	}
}

// openRun opens the checkpoint of a run, where it is here if that is not "", and returns its recipe.
func (a *app) openRun(ctx context.Context, command []byte, checkpoint string) (pipeline.Source, pipeline.Recipe, error) {
	var c runCommand
	if err := json.Unmarshal(command, &c); err != nil {
		return nil, pipeline.Recipe{}, fmt.Errorf("what the coordinator says of the run: %w", err)
	}
	if checkpoint != "" {
		c.Checkpoint = checkpoint
	}
	f, err := os.CreateTemp("", "llmq-recipe-*.yaml")
	if err != nil {
		return nil, pipeline.Recipe{}, err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(c.Recipe)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, pipeline.Recipe{}, err
	}
	var o quantizeOptions
	cmd := &cobra.Command{}
	o.AddFlags(cmd)
	if err := loadRecipe(f.Name(), cmd.Flags()); err != nil {
		return nil, pipeline.Recipe{}, err
	}
	r, err := o.recipe()
	if err != nil {
		return nil, pipeline.Recipe{}, err
	}
	r.Requantize = c.Requantize
	src, err := a.openSource(ctx, c.Checkpoint, hf.Options{Pre: o.Pre, LoRA: c.LoRA, MTP: o.MTP.v})
	return src, r, err
}
