//go:build !nonats

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/engine/cluster"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/hub"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/store"
)

// engineOptions are those of runs on many machines.
type engineOptions struct {
	Listen  string
	Engine  string
	AckWait time.Duration
	natsOptions

	command []byte // runCommand, for workers
}

// natsOptions say who one is to a NATS server.
type natsOptions struct {
	Token string
	Creds string
}

// tokenEnv names the environment variable that --token is taken from where it is not given: others can see command lines.
const tokenEnv = "LLMQ_TOKEN"

func (o *natsOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Token, "token", "", "secret that the coordinator and its workers share (default $"+tokenEnv+")")
	f.StringVar(&o.Creds, "creds", "", "NATS credentials `FILE`, for a NATS server of your own")
}

func (o *natsOptions) connection(url string) cluster.Connection {
	token := o.Token
	if token == "" {
		token = os.Getenv(tokenEnv)
	}
	return cluster.Connection{URL: url, Token: token, Creds: o.Creds}
}

func (o *engineOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", "", "with --work: let workers on other machines take part, at `HOST:PORT`: see llmq worker")
	f.StringVar(&o.Engine, "engine", "", "with --work: let workers on other machines take part, through a NATS server of your own with JetStream at `URL`, such as nats://host:4222 or tls://host:4222")
	f.DurationVar(&o.AckWait, "ack-wait", cluster.DefaultAckWait, "with --listen or --engine: how long a worker may be silent before others are given its work")
	o.natsOptions.AddFlags(cmd)
}

// many says whether there may be other machines.
func (o *engineOptions) many() bool { return o.Listen != "" || o.Engine != "" }

func (o *engineOptions) checkEngine(work string) error {
	switch {
	case o.Listen != "" && o.Engine != "":
		return usagef("--listen and --engine: give one, a port of this process or a server")
	case o.many() && work == "":
		return usagef("machines share their work in a folder that all see: give it with --work")
	case o.AckWait != cluster.DefaultAckWait && !o.many():
		return usagef("--ack-wait is for runs on many machines: give it with --listen or --engine")
	case o.AckWait < 100*time.Millisecond:
		return usagef("--ack-wait %v: need 100ms or more", o.AckWait)
	case o.Creds != "" && o.Engine == "":
		return usagef("--creds is for a NATS server of your own: give it with --engine")
	case o.Token != "" && !o.many():
		return usagef("--token is for runs on many machines: give it with --listen or --engine")
	}
	if o.Listen != "" {
		if err := cluster.CheckListen(o.Listen, o.connection("").Token); err != nil {
			return usagef("--listen %w, with --token or $%s", err, tokenEnv)
		}
	}
	return nil
}

// runCommand is what a worker must know to open the checkpoint and to plan as the coordinator has.
type runCommand struct {
	Checkpoint string
	LoRA       string
	Requantize bool
	Recipe     []byte // recipeYAML
}

// describe notes what workers are told of a run whose options flags have set.
func (o *engineOptions) describe(q *quantizeOptions, r pipeline.Recipe) error {
	if !o.many() {
		return nil
	}
	if err := r.Divisible(); err != nil {
		return &usageError{err}
	}
	if q.LowDisk {
		return usagef("--low-disk drops what it has read of the checkpoint, which many machines need: give a folder that all see, or do without")
	}
	c := runCommand{Requantize: q.Requantize}
	var err error
	if c.Recipe, err = recipeYAML(q, r); err != nil {
		return err
	}
	if c.Checkpoint = q.Checkpoint; !hub.IsName(q.Checkpoint) { // the hub's name is the same everywhere
		if c.Checkpoint, err = filepath.Abs(q.Checkpoint); err != nil {
			return err
		}
	}
	if q.LoRA != "" {
		if c.LoRA, err = filepath.Abs(q.LoRA); err != nil {
			return err
		}
	}
	o.command, err = engine.OfKind(quantizeRun, &c)
	return err
}

// Kinds of runs that workers take part in: see app.runKinds.
const (
	quantizeRun = "quantize"
	evalRun     = "eval"
)

// participant is what a process needs to take part in a run.
type participant struct {
	model string // what the run is about
	make  engine.Factory
	close func() error
}

// build tells programs apart that may compute something else.
func build() (string, error) {
	b, err := buildDigest()
	return b + " " + runtime.GOARCH, err
}

// coordinator is the engine of a run, with a worker in this process.
type coordinator struct {
	*cluster.Coordinator
	worker *participant // in this process
	cancel func()
	ended  chan error // of the worker
	noting sync.WaitGroup

	endSpare func()
}

// beforeWork is called before the worker in this process begins: tests wait there.
var beforeWork = func(context.Context, *cluster.Coordinator) {}

// start starts the engine of a run in a work folder.
func (o *quantizeOptions) start(ctx context.Context, a *app, work store.Folder, plan *pipeline.Plan) (*coordinator, error) {
	src, err := a.openQuietly(ctx, o.Checkpoint, hf.Options{Pre: o.Pre, LoRA: o.LoRA, MTP: o.MTP.v})
	if err != nil {
		return nil, err
	}
	return o.coordinate(ctx, a, o.Work, work, quantizing(src, plan.Recipe, work, pipeline.WorkerOptions{Memory: int64(o.Memory),
		TempDir: filepath.Dir(o.Output)}))
}

// quantizing takes part in a run of quantize.
func quantizing(src pipeline.Source, r pipeline.Recipe, values store.Shared, opt pipeline.WorkerOptions) *participant {
	return &participant{model: src.Name(), close: src.Close, make: func(ctx context.Context, job []byte) (engine.Worker, error) {
		return pipeline.NewWorker(ctx, src, r, job, values, opt)
	}}
}

// coordinate starts the engine of a run that o.command tells workers of, with a worker in this process that it closes at the end.
func (o *engineOptions) coordinate(ctx context.Context, a *app, folder string, work store.Folder, worker *participant) (*coordinator, error) {
	b, err := build()
	if err != nil {
		return nil, errors.Join(err, worker.close())
	}
	c := &coordinator{ended: make(chan error, 1), worker: worker, endSpare: kernels.Spare()}
	c.Coordinator, err = cluster.New(ctx, cluster.Options{
		Connection: o.connection(o.Engine), Listen: o.Listen, Run: work.ID(), Values: work, Build: b, Tier: kernels.CurrentTier().String(),
		Command: o.command, AckWait: o.AckWait, Log: func(message string) { fmt.Fprintf(a.stderr, "llmq: %s\n", message) },
	})
	if err != nil {
		c.endSpare()
		return nil, errors.Join(err, worker.close())
	}
	if address := c.Address(); address != "" {
		fmt.Fprintf(a.stderr, "llmq: workers can join: llmq worker %s --work %s\n", reachable(address), folder)
	}
	w := c.Local()
	w.Name, w.Values, w.Make = workerName(), work, worker.make
	ctx, c.cancel = context.WithCancel(ctx)
	go func() {
		beforeWork(ctx, c.Coordinator)
		c.ended <- w.Work(ctx)
	}()
	c.noting.Go(func() { c.noteWorkers(ctx, work, o.AckWait/3) })
	return c, nil
}

// noteWorkers notes now and then who takes part, until ctx ends. It is for llmq status alone: one that cannot be written costs nothing.
func (c *coordinator) noteWorkers(ctx context.Context, work store.Folder, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	defer work.NoteWorkers(nil)
	var noted []store.Worker
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var list []store.Worker
		for _, w := range c.Workers() {
			if w.Alive {
				list = append(list, store.Worker{Name: w.Name, Since: w.Since, Unit: w.Unit, Done: w.Done})
			}
		}
		if !slices.Equal(list, noted) && work.NoteWorkers(list) == nil {
			noted = list
		}
	}
}

// reachable is an address at which others reach this machine, where it is one at which it listens for all.
func reachable(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() == "" || ip != nil && ip.IsUnspecified() {
		if host, err := os.Hostname(); err == nil {
			u.Host = net.JoinHostPort(host, u.Port())
		}
	}
	return u.String()
}

// end ends the run for its workers. They wait for an interrupted one to go on.
func (c *coordinator) end(ctx context.Context, failed error) {
	interrupted := ctx.Err() != nil
	c.cancel()
	<-c.ended
	c.noting.Wait()
	c.End(failed, interrupted)
	c.worker.close()
	c.endSpare()
}

// openQuietly opens a source that has been opened before, with its warnings.
func (a *app) openQuietly(ctx context.Context, path string, opt hf.Options) (pipeline.Source, error) {
	quiet := *a
	quiet.stderr = discard{}
	return quiet.openSource(ctx, path, opt)
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// workerName is a name for this process that no other has, of what NATS allows in names.
func workerName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "host"
	}
	host = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, host)
	return fmt.Sprintf("%s-%d-%s", host, os.Getpid(), strings.ToLower(rand.Text()[:4]))
}
