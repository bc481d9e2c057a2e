package pipeline

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
)

// WorkerOptions says how a Worker works. The zero value is the default.
type WorkerOptions struct {
	// Memory bounds the bytes of hidden states kept in memory, as Options.Memory does.
	Memory int64
	// TempDir is where the others are, "" the system's.
	TempDir string
}

// Worker does the units of a run with Options.Engine. Between units it keeps the hidden states of the shards that it has had, and
// the layer with the rows that are quantized so far.
type Worker struct {
	*task
	values store.Shared
	job    jobSpec
	found  *findings
	budget *stateBudget
	tokens [][]int32 // of the calibration text, once they have been read

	layer  *workedLayer
	shards map[int]*workedShard
	all    *workedShard // of all shards: of a stage of experts
	sums   *workedSums
	// own and originals are what all shards' streams work in, of both models: a unit moves one shard.
	own, originals *workspace
}

// workedLayer is a layer of both models; the original's is nil if there is none.
type workedLayer struct {
	index int
	l, ol *model.Layer
	k     int // the stages before it have their rows
}

// workedShard is the hidden states of a shard, in both models.
type workedShard struct {
	layer       int
	s, original *stream
	ended       bool // the original's are behind the layer already
}

// workedSums are the statistics of a stage's site, and what has been made of them.
type workedSums struct {
	name   string // of their first part
	in     *quant.Stats
	solver quant.Solver
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
	w.own, w.originals = newWorkspace(w.m), newWorkspace(w.m)
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
		default:
			err = errors.Join(err, w.leave(u.Shard))
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
	}
	switch u.Kind {
	case unitObserve:
		return w.observe(p, u)
	case unitOfRows:
		return w.rows(p, u)
	case unitStand:
		return w.keepStand(p, u)
	case unitExperts:
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
	return d.eachLinear(w.values, l, k, d.rowUnits(l, k, 0), func(t *Tensor, lin *model.Linear, q *rows) error {
		lin.F32 = nil
		lin.W = kernels.Weights{Rows: lin.Out, Cols: lin.In, Format: &t.Type.Format, Data: q.data}
		if q.shift != nil {
			shiftBias(l, lin, q.shift)
		}
		return nil
	})
}

// leave drops the hidden states of a shard.
func (w *Worker) leave(shard int) error {
	s := w.shards[shard]
	delete(w.shards, shard)
	return s.close(w.budget)
}

// leaveAll drops those of all shards together.
func (w *Worker) leaveAll() error {
	s := w.all
	w.all = nil
	return s.close(w.budget)
}

func (s *workedShard) close(budget *stateBudget) error {
	if s == nil {
		return nil
	}
	var err error
	for _, s := range []*stream{s.s, s.original} {
		if s != nil {
			budget.left += s.inMemory()
			err = errors.Join(err, s.close())
		}
	}
	return err
}

// inMemory is how many bytes of the stream's hidden states are in memory.
func (s *stream) inMemory() (bytes int64) {
	for _, st := range s.stores() {
		if !st.Spilled() {
			bytes += st.Bytes()
		}
	}
	return bytes
}

// streams makes room for the hidden states of so many sequences.
func (w *Worker) streams(seqs int, partial bool) (*workedShard, error) {
	s := &workedShard{}
	var err error
	if s.s, err = zeroStream(w.m, seqs, w.job.SeqLen, true, w.budget, w.tempDir); err != nil {
		return nil, err
	}
	s.s.workspace, s.s.partial = w.own, partial
	if partial {
		if err := s.s.keepHidden(seqs, w.budget, w.tempDir); err != nil {
			return nil, errors.Join(err, s.close(w.budget))
		}
	}
	if w.original() {
		if s.original, err = zeroStream(w.m, seqs, w.job.SeqLen, false, w.budget, w.tempDir); err != nil {
			return nil, errors.Join(err, s.close(w.budget))
		}
		s.original.workspace, s.original.partial = w.originals, partial
	}
	return s, nil
}

// batches is the number of batches of the calibration text.
func (w *Worker) batches() int { return batchCount(w.m, w.job.Sequences, w.job.SeqLen) }

// shard returns the hidden states of a shard, at stage k of a layer or before it.
func (w *Worker) shard(shard, layer, k int) (*workedShard, error) {
	s := w.shards[shard]
	if s != nil && s.layer == layer && s.s.at <= k && (s.original == nil || s.original.at <= k && !s.ended) {
		return s, nil
	}
	if err := w.leave(shard); err != nil {
		return nil, err
	}
	n := w.batches()
	if shard < 0 || shard >= shardCount(n) {
		return nil, fmt.Errorf("the unit is of shard %d of %d", shard, shardCount(n))
	}
	lo, hi := shardBatches(shard, n)
	per := batchSequences(w.m, w.job.SeqLen)
	s, err := w.streams(min(hi*per, w.job.Sequences)-lo*per, true)
	if err != nil {
		return nil, err
	}
	s.layer = layer
	w.shards[shard] = s
	if layer == 0 {
		err = w.embed(s, lo*per)
	} else {
		err = loadStates(w.values, w.kept.shardName(layer, shard), s.s, s.original, 0, hi-lo)
	}
	if err != nil {
		return nil, errors.Join(err, w.leave(shard))
	}
	return s, nil
}

// embed fills hidden states with the embeddings of the calibration text's sequences from first on, as many as there is room for.
func (w *Worker) embed(s *workedShard, first int) error {
	if w.tokens == nil {
		var err error
		if w.tokens, err = recallTokens(w.values, w.kept.tokensName(), w.job.Sequences); err != nil {
			return err
		}
	}
	_, n := s.s.x.Sequences(s.s.x.Batches() - 1)
	seqs := w.tokens[first : first+n]
	if err := embed(w.m, s.s.x, seqs, w.job.SeqLen, (&passage{task: w.task}).roundEmbeddings()); err != nil || s.original == nil {
		return err
	}
	return embed(w.m, s.original.x, seqs, w.job.SeqLen, nil)
}

// recallTokens reads the tokens of so many sequences.
func recallTokens(values store.Store, name string, n int) (seqs [][]int32, err error) {
	ok, err := recallValue(values, name, &seqs)
	switch {
	case err != nil:
	case !ok:
		err = fmt.Errorf("the work folder: has no %s", name)
	case len(seqs) != n:
		err = fmt.Errorf("the work folder: %s: %d sequences of %d", name, len(seqs), n)
	}
	return seqs, err
}

// observe makes the statistics of a site's inputs, or of all experts' together, over a shard, or a group of them.
func (w *Worker) observe(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	return w.overShards(u, func(shard int, sums *quant.Stats) (*quant.Stats, error) {
		if u.Stage >= len(w.layer.l.Stages) {
			return nil, fmt.Errorf("layer %d has no stage %d", u.Layer, u.Stage)
		}
		s, err := w.shard(shard, u.Layer, u.Stage)
		if err != nil {
			return nil, err
		}
		at := &place{s: s.s, l: w.layer.l, k: u.Stage}
		if u.Pool {
			_, pooled, err := p.observe(at, 0, 0, true)
			return pooled, err
		}
		at.original, at.ol = s.original, w.layer.ol
		if s.s.batchIsShard() {
			if at.into = sums; sums == nil {
				at.into = quant.NewStats(at.stage().Width())
				at.into.Apart = true
			}
		}
		in, _, err := p.observe(at, 0, 1, false)
		if err != nil {
			return nil, err
		}
		if s.original != nil {
			s.original.passed(at.ol, at.k)
			s.ended = at.k+1 == len(at.ol.Stages)
		}
		return in[0], nil
	})
}

// overShards has the statistics of each of a unit's shards made, which are added in their order unless they have been added to the sums
// of those before, and puts their sum.
func (w *Worker) overShards(u *unitSpec, of func(shard int, sums *quant.Stats) (*quant.Stats, error)) (func(io.Writer) error, error) {
	var sums *quant.Stats
	lo, hi := u.shards(w.batches())
	for shard := lo; shard < hi; shard++ {
		s, err := of(shard, sums)
		switch {
		case err != nil:
			return nil, errors.Join(err, w.leave(shard))
		case sums == nil:
			sums = s
		case s != sums:
			sums.Add(s)
		}
	}
	if sums == nil {
		return nil, fmt.Errorf("the unit is of shards %d to %d", lo, hi)
	}
	return w.observed(u, sums)
}

// observed puts the parts of what an observe unit has found but the last, which it returns what writes.
func (w *Worker) observed(u *unitSpec, s *quant.Stats) (func(io.Writer) error, error) {
	part := statsPart{parts: statsParts(s.H.Rows)}
	names := u.observed(w.kept, part.parts)
	var before []string // digests, so that that of the last part is one of all
	for ; part.part < part.parts-1; part.part++ {
		digest, err := w.values.Put(names[part.part], false, func(w io.Writer) error { return saveStats(w, s, part, nil) })
		if err != nil {
			return nil, err
		}
		before = append(before, digest)
	}
	return func(w io.Writer) error { return saveStats(w, s, part, before) }, nil
}

// outputs is the number of outputs of a stage's one linear, 0 where there are more.
func soleOutputs(stage *model.Stage) int {
	if len(stage.Sites) == 1 && len(stage.Sites[0].Linears) == 1 {
		return stage.Sites[0].Linears[0].Out
	}
	return 0
}

// shape is the number of inputs of a stage's sites, and of outputs of its one linear.
func (w *Worker) shape(u *unitSpec) (in, out int, err error) {
	if u.Layer == w.m.Layers() {
		return w.m.Dim, 0, nil
	}
	if w.layer == nil || w.layer.index != u.Layer {
		if err := w.enter(u.Layer, 0); err != nil {
			return 0, 0, err
		}
	}
	if u.Stage >= len(w.layer.l.Stages) {
		return 0, 0, fmt.Errorf("layer %d has no stage %d", u.Layer, u.Stage)
	}
	stage := &w.layer.l.Stages[u.Stage]
	return stage.Width(), soleOutputs(stage), nil
}

// sum adds the statistics of all shards, in their order.
func (w *Worker) sum(u *unitSpec) (func(io.Writer) error, error) {
	in, out, err := w.shape(u)
	if err != nil {
		return nil, err
	}
	part := statsPart{u.Part, statsParts(in)}
	if part.part < 0 || part.part >= part.parts {
		return nil, fmt.Errorf("the unit is of part %d of %d", part.part, part.parts)
	}
	names := [][]string{nil} // of groups
	observed := *u
	observed.Kind, observed.Part = unitObserve, 0
	for observed.Shard = range observed.count(w.batches()) {
		if n := shardCount(w.batches()); !u.Group && grouped(in) && groupOf(observed.Shard, n) == len(names) {
			names = append(names, nil)
		}
		last := len(names) - 1
		names[last] = append(names[last], observed.observed(w.kept, part.parts)[part.part])
	}
	return func(dst io.Writer) error {
		importance, err := addStats(dst, w.values, names, part, in, out)
		if err != nil {
			return err
		}
		return checkInputs(fmt.Sprintf("stage %d", u.Stage), importance)
	}, nil
}

// summed returns the statistics of a stage's site, or of all of its experts.
func (w *Worker) summed(u *unitSpec) (*workedSums, error) {
	name := summed(w.kept, u.Layer, u.Stage, 1)[0]
	if w.sums == nil || w.sums.name != name {
		in, out, err := w.shape(u)
		if err != nil {
			return nil, err
		}
		w.sums = nil // the room that they take is needed
		s, err := loadStats(w.values, summed(w.kept, u.Layer, u.Stage, statsParts(in)), in, out)
		if err != nil {
			return nil, err
		}
		w.sums = &workedSums{name: name, in: s, solver: w.plan.Recipe.Method.Open(s)}
	}
	return w.sums, nil
}

// rows quantizes rows of a linear.
func (w *Worker) rows(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	if u.Stage >= len(w.layer.l.Stages) || u.Linear >= len(w.layer.l.Stages[u.Stage].Sites[0].Linears) {
		return nil, fmt.Errorf("layer %d, stage %d has no linear %d", u.Layer, u.Stage, u.Linear)
	}
	lin := w.layer.l.Stages[u.Stage].Sites[0].Linears[u.Linear]
	if u.First < 0 || u.Last > lin.Out || u.First >= u.Last {
		return nil, fmt.Errorf("%s has %d rows, the unit is of rows %d to %d", lin.Name, lin.Out, u.First, u.Last)
	}
	sums, err := w.summed(u)
	if err != nil {
		return nil, err
	}
	t := w.plan.Lookup(lin.Name)
	job := &rowsJob{tensor: t, first: u.First, product: lin.Product, solver: sums.solver, in: sums.in}
	if job.outputs, err = w.found.outputs.of(lin, nil); err != nil {
		return nil, err
	}
	part := lin
	if u.Last-u.First < lin.Out {
		part = lin.Part(u.First, u.Last)
		if job.inexact, err = offGrid(t, lin); err != nil {
			return nil, err
		}
		first := 0
		for i, h := range job.outputs {
			if first == u.First && first+h.Rows == u.Last {
				job.outputs = job.outputs[i : i+1]
				break
			}
			first += h.Rows
		}
	}
	q, err := p.linear(p.ctx, part, job)
	if err != nil {
		return nil, err
	}
	return oneRecord(t.Name, lin.First()+u.First, &q), nil
}

// offGrid says whether the type cannot store all of a linear's rows as they are: those that it could are then changed too, for
// what the others lose.
func offGrid(t *Tensor, lin *model.Linear) (bool, error) {
	if t.Type.Grid == nil {
		return false, nil
	}
	row, err := lin.Part(0, 1).Matrix()
	if err != nil || exactly(t, row) == nil {
		return true, err
	}
	w, err := lin.Matrix()
	return err == nil && exactly(t, w) == nil, err
}

func oneRecord(tensor string, first int, q *rows) func(io.Writer) error {
	return func(w io.Writer) error {
		enc := gob.NewEncoder(w)
		if err := saveRows(enc, w, tensor, first, q); err != nil {
			return err
		}
		return enc.Encode(&record{})
	}
}

// keepStand takes a shard of both models to a stage, where experts are to find it.
func (w *Worker) keepStand(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	s, err := w.shard(u.Shard, u.Layer, u.Stage)
	if err != nil {
		return nil, err
	}
	nothing := func(int) error { return nil }
	if err := s.s.visit(p.ctx, w.layer.l, u.Stage, nothing); err != nil {
		return nil, err
	}
	if s.original != nil {
		if err := s.original.visit(p.ctx, w.layer.ol, u.Stage, nothing); err != nil {
			return nil, err
		}
	}
	return func(w io.Writer) error { return saveStates(w, s.s, s.original, 0, s.s.x.Batches()) }, nil
}

// experts observes some experts over all of the text, and quantizes them.
func (w *Worker) experts(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	if u.Stage >= len(w.layer.l.Stages) || u.Site < 0 || u.Site >= u.End || u.End > len(w.layer.l.Stages[u.Stage].Sites) {
		return nil, fmt.Errorf("layer %d, stage %d has no sites %d to %d", u.Layer, u.Stage, u.Site, u.End)
	}
	s, err := w.allAt(u)
	if err != nil {
		return nil, err
	}
	at := &place{s: s.s, l: w.layer.l, original: s.original, ol: w.layer.ol, k: u.Stage, stays: true}
	sites := at.stage().Sites
	for _, s := range []*stream{s.s, s.original} {
		if s != nil && (u.End < len(sites) || sites[u.End-1].Expert >= 0) {
			s.st.OnlyExperts(u.Site, u.End)
			defer s.st.OnlyExperts(0, 0)
		}
	}
	in, _, err := p.observe(at, u.Site, u.End, false)
	if err != nil {
		return nil, err
	}
	var put []putRows
	for j, stats := range in {
		site := sites[u.Site+j]
		var tokens []int
		if site.Expert >= 0 && !site.Head {
			pooled, err := w.summed(u)
			if err != nil {
				return nil, err
			}
			tokens = []int{stats.Tokens}
			shrink(stats, pooled.in)
		}
		solver := w.plan.Recipe.Method.Open(stats)
		for _, lin := range site.Linears {
			job := &rowsJob{tensor: w.plan.Lookup(lin.Name), product: lin.Product, solver: solver, in: stats}
			if job.outputs, err = w.found.outputs.of(lin, nil); err != nil {
				return nil, err
			}
			q, err := p.linear(p.ctx, lin, job)
			if err != nil {
				return nil, err
			}
			q.tokens = tokens
			q.decoded = nil
			put = append(put, putRows{job.tensor.Name, lin.First(), q})
		}
		in[j] = nil
	}
	return func(w io.Writer) error {
		enc := gob.NewEncoder(w)
		for i := range put {
			if err := saveRows(enc, w, put[i].tensor, put[i].first, &put[i].rows); err != nil {
				return err
			}
		}
		return enc.Encode(&record{})
	}, nil
}

type putRows struct {
	tensor string
	first  int
	rows
}

// allAt returns the hidden states of all shards, where experts find them.
func (w *Worker) allAt(u *unitSpec) (*workedShard, error) {
	if s := w.all; s != nil && s.layer == u.Layer && s.s.at >= u.Stand && s.s.at <= u.Stage {
		return s, nil
	}
	if err := w.leaveAll(); err != nil {
		return nil, err
	}
	s, err := w.streams(w.job.Sequences, false)
	if err != nil {
		return nil, err
	}
	w.all, s.layer = s, u.Layer
	if u.Layer == 0 && u.Stand == 0 {
		err = w.embed(s, 0)
	} else {
		err = w.loadAll(s, u)
	}
	if err != nil {
		return nil, errors.Join(err, w.leaveAll())
	}
	s.s.at = u.Stand
	if s.original != nil {
		s.original.at = u.Stand
	}
	return s, nil
}

// loadAll reads the hidden states of all shards, before the layer of a unit of experts or where they are kept for it.
func (w *Worker) loadAll(s *workedShard, u *unitSpec) error {
	n := w.batches()
	for shard := range shardCount(n) {
		name := w.kept.shardName(u.Layer, shard)
		if u.Stand > 0 {
			stand := unitSpec{Kind: unitStand, Layer: u.Layer, Stage: u.Stand, Shard: shard}
			name = stand.name(w.kept)
		}
		lo, hi := shardBatches(shard, n)
		if err := loadStates(w.values, name, s.s, s.original, lo, hi); err != nil {
			return err
		}
	}
	return nil
}

// advance takes a shard through the rest of the layer.
func (w *Worker) advance(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	if err := w.leaveAll(); err != nil { // the next layer's begin elsewhere
		return nil, err
	}
	s := w.shards[u.Shard]
	if s == nil || s.layer != u.Layer {
		var err error
		if s, err = w.shard(u.Shard, u.Layer, u.Stage); err != nil {
			return nil, err
		}
	}
	if err := s.s.advance(p.ctx, w.layer.l); err != nil {
		return nil, err
	}
	if s.original != nil && !s.ended {
		if err := s.original.advance(p.ctx, w.layer.ol); err != nil {
			return nil, err
		}
	}
	s.layer, s.ended = u.Layer+1, false
	return func(w io.Writer) error { return saveStates(w, s.s, s.original, 0, s.s.x.Batches()) }, nil
}

// observeHead makes the statistics of the head's inputs over a shard.
func (w *Worker) observeHead(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	h, err := w.m.LoadHead()
	if err != nil {
		return nil, err
	}
	defer h.Release()
	return w.overShards(u, func(shard int, _ *quant.Stats) (*quant.Stats, error) {
		s, err := w.shard(shard, u.Layer, 0)
		if err != nil {
			return nil, err
		}
		return p.observeHead(s.s, s.original, h)
	})
}

// headRows quantizes rows of the head.
func (w *Worker) headRows(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	sums, err := w.summed(u)
	if err != nil {
		return nil, err
	}
	h, err := w.m.LoadHead()
	if err != nil {
		return nil, err
	}
	defer h.Release()
	if u.First < 0 || u.Last > h.Linear.Out || u.First >= u.Last {
		return nil, fmt.Errorf("the head has %d rows, the unit is of rows %d to %d", h.Linear.Out, u.First, u.Last)
	}
	q, err := p.headPart(h, u.First, u.Last, &rowsJob{tensor: w.plan.Lookup(outputName), solver: sums.solver, in: sums.in})
	if err != nil {
		return nil, err
	}
	return oneRecord(outputName, u.First, &q), nil
}
