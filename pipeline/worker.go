package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// WorkerOptions says how a Worker works. The zero value is the default.
type WorkerOptions struct {
	// Memory bounds the bytes of hidden states kept in memory, as Options.Memory does.
	Memory int64
	// TempDir is where the others are, and sums that wait, "" the system's.
	TempDir string
}

// Worker does the units of a run with Options.Engine. Between units it keeps the hidden states of the shards that it has had, and
// the layer with the rows that are quantized so far.
type Worker struct {
	*task
	values store.Shared
	job    jobSpec
	text   batching // the calibration text's
	found  *findings
	budget *stateBudget
	tokens [][]int32 // of the calibration text, once they have been read

	layer  *workedLayer
	shards map[int]*workedShard
	all    *workedShard // of all shards: of a stage of experts
	sums   *workedSums
	made   *madeSums // nil: nothing
	// own and originals are what all shards' streams work in, of both models: a unit moves one shard.
	own, originals *workspace
}

// workedLayer is a layer of both models; the original's is nil if there is none.
type workedLayer struct {
	index int
	l, ol *model.Layer
	k     int // the stages before it have their rows
}

// NewWorker returns a worker for the job that an engine has been given, on the same checkpoint with the same recipe.
func NewWorker(ctx context.Context, src Source, r Recipe, job []byte, values store.Shared, opt WorkerOptions) (engine.Worker, error) {
	return engine.Kinds[engine.Worker]{
		jobLayers: func(ctx context.Context, spec []byte) (engine.Worker, error) {
			return newLayersWorker(ctx, src, r, spec, values, opt)
		},
		jobEffects: func(_ context.Context, spec []byte) (engine.Worker, error) {
			return newEffectsWorker(src, spec, values, opt)
		},
		jobGradients: func(ctx context.Context, spec []byte) (engine.Worker, error) {
			return newGradientsWorker(ctx, src, r, spec, values, opt)
		},
	}.Make(ctx, job)
}

// newLayersWorker returns a Worker for a jobSpec.
func newLayersWorker(ctx context.Context, src Source, r Recipe, job []byte, values store.Shared, opt WorkerOptions) (*Worker, error) {
	w := &Worker{values: values, budget: newStateBudget(opt.Memory), found: newFindings(), shards: map[int]*workedShard{}}
	if err := json.Unmarshal(job, &w.job); err != nil {
		return nil, fmt.Errorf("the job: %w", err)
	}
	if err := isAbout(src, w.job.Source); err != nil {
		return nil, err
	}
	p, err := NewPlan(src, r)
	if err == nil {
		p, err = w.job.apply(p)
	}
	if err != nil {
		return nil, err
	}
	w.task = &task{ctx: ctx, src: src, plan: p, opt: Options{NoCorrection: w.job.NoCorrection, Progress: silent{}}, tempDir: opt.TempDir,
		kept: newKeeper(nil, "", "", &p.Recipe, w.job.Run)}
	if w.m, err = arch.Open(src); err != nil {
		return nil, err
	}
	if w.job.Sequences < 1 || w.job.SeqLen < 1 {
		return nil, fmt.Errorf("the job: %d sequences of %d tokens", w.job.Sequences, w.job.SeqLen)
	}
	w.text = textBatches(w.m, w.job.Sequences, w.job.SeqLen)
	w.own = newWorkspace(w.m)
	w.originals = w.own.beside(w.m)
	if w.job.Outputs {
		if w.found.outputs, err = recallOutputs(values, opt.TempDir); err != nil {
			return nil, err
		}
		if w.found.outputs == nil {
			return nil, fmt.Errorf("the work folder: has no %s", outputsName)
		}
	}
	return w, nil
}

// isAbout refuses a source of another digest than that of a job.
func isAbout(src Source, want string) error {
	digest, err := SourceDigest(src)
	if err == nil && digest != want {
		err = fmt.Errorf("%s: is not the checkpoint that the run is about", src.Name())
	}
	return err
}

// Close implements engine.Worker.
func (w *Worker) Close() error {
	w.found.outputs.close()
	err := w.leaveAll()
	for shard := range w.shards {
		err = errors.Join(err, w.leave(shard))
	}
	w.release()
	return err
}

// Do implements engine.Worker.
func (w *Worker) Do(ctx context.Context, unit engine.Unit) (digest string, err error) {
	var u unitSpec
	if err := json.Unmarshal(unit.Spec, &u); err != nil {
		return "", fmt.Errorf("the unit: %w", err)
	}
	if name := u.name(w.kept); name != unit.Name {
		return "", fmt.Errorf("the unit's name is %q, of what it says %q", unit.Name, name)
	}
	t := *w.task
	t.ctx = ctx
	p := &passage{task: &t, out: &writer{task: &t}, scaled: &transformer{task: &t}, found: w.found}
	err = mmap.Guard(func() error {
		save, err := w.value(p, &u)
		if err == nil {
			digest, err = w.values.Put(unit.Name, u.Kind == unitAdvance, save)
		}
		return err
	})
	if err != nil { // hidden states may be anywhere
		switch u.Kind {
		case unitExperts:
			err = errors.Join(err, w.leaveAll())
		case unitObserve, unitStand, unitAdvance:
			lo, hi := u.shards(w.text.batches())
			for shard := range w.shards {
				if lo <= shard && shard < hi {
					err = errors.Join(err, w.leave(shard))
				}
			}
		}
	}
	return digest, err
}

// value does a unit, and returns what writes its value.
func (w *Worker) value(p *passage, u *unitSpec) (save func(io.Writer) error, err error) {
	switch {
	case u.Kind == unitSum:
		return w.sum(u)
	case u.Layer == w.m.Layers() && u.Kind == unitObserve:
		return w.observeHead(p, u)
	case u.Layer == w.m.Layers() && u.Kind == unitOfRows:
		return w.headRows(p, u)
	}
	if err := w.enter(u.Layer, u.Stage); err != nil {
		return nil, err
	}
	switch u.Kind {
	case unitObserve, unitStand, unitAdvance:
		w.sums = nil // the stage's rows are done, and their room is needed
		w.madeOf(u)
	}
	switch u.Kind {
	case unitObserve:
		return w.observe(p, u)
	case unitOfRows:
		return w.rows(p, u)
	case unitBatch:
		return w.batch(p, u)
	case unitStand:
		return w.keepStand(p, u)
	case unitExperts:
		if w.made != nil {
			clear(w.made.parts) // the room is needed
		}
		return w.experts(p, u)
	case unitAdvance:
		return w.advance(p, u)
	}
	return nil, fmt.Errorf("the unit is of kind %q, which this llmq does not know", u.Kind)
}

// release gives the layer back.
func (w *Worker) release() {
	if w.layer == nil {
		return
	}
	w.layer.l.Release()
	if w.layer.ol != nil {
		w.layer.ol.Release()
	}
	w.layer = nil
}

// original says whether the original model's hidden states are known.
func (w *Worker) original() bool { return w.plan.Recipe.original() && !w.opt.NoCorrection }

// enter loads a layer, unless it is there, and gives the stages before stage k their quantized rows, and no others.
func (w *Worker) enter(layer, k int) error {
	if w.layer == nil || w.layer.index != layer || w.layer.k > k {
		w.release()
		for shard, s := range w.shards { // that others have taken over
			if s.layer < layer {
				if err := w.leave(shard); err != nil {
					return err
				}
			}
		}
		l, err := w.m.LoadLayer(layer)
		if err != nil {
			return err
		}
		w.layer = &workedLayer{index: layer, l: l}
		if w.original() {
			if w.layer.ol, err = w.m.LoadAgain(l); err != nil {
				w.release()
				return err
			}
		}
		if w.goesOn(layer) {
			w.m.ReadAhead(layer + 1)
		}
	}
	if k > len(w.layer.l.Stages) {
		return fmt.Errorf("layer %d has %d stages, the unit is of stage %d", layer, len(w.layer.l.Stages), k)
	}
	for ; w.layer.k < k; w.layer.k++ {
		if err := w.install(w.layer.l, w.layer.k); err != nil {
			w.release()
			return err
		}
	}
	return nil
}

// goesOn is passage.goesOn.
func (w *Worker) goesOn(layer int) bool { return (&passage{task: w.task}).goesOn(layer) }

// install gives the linears of a stage their quantized rows.
func (w *Worker) install(l *model.Layer, k int) error {
	d := &driver{passage: &passage{task: w.task, found: w.found}}
	return d.eachLinear(w.values, l, k, d.rowUnits(l, k, 0, 0), func(t *Tensor, lin *model.Linear, q *rows) error {
		takeRows(l, lin, t, q.data, q.shift)
		return nil
	})
}
