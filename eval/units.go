package eval

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// With Options.Engine the text is divided into shards of whole batches. A unit takes one shard through all models from the first
// layer to the head, and its value is what was scored, token by token, so that the result is made of the same numbers in the same
// order whoever has made them. In the work folder are
//
//	eval-text        all tokens, for the workers
//	eval-scoresS     of shard S: see scores.save
const (
	unitsPrefix = "eval-"
	textName    = unitsPrefix + "text"
)

// textShards is the most units that a text is divided into: each reads all weights.
const textShards = 16

// JobKind is the kind of Perplexity's jobs, for engine.Kinds.
const JobKind = "eval"

// jobSpec is what a worker must know of an evaluation besides its models.
type jobSpec struct {
	Context     int
	Tokens      int // of the text, all of them in whole chunks
	ScoreAll    bool
	BOS         *int32
	Base        bool
	Activations Activations
	Outliers    int8outlier.Criteria
	BatchTokens int
	Precision   kernels.Precision
}

// unitSpec is a unit's engine.Unit.Spec.
type unitSpec struct{ Shard int }

func (u unitSpec) name() string { return fmt.Sprintf("%sscores%02d", unitsPrefix, u.Shard) }

// shards is how many units there are.
func (p *plan) shards() int { return min(textShards, p.batches()) }

func (p *plan) batches() int { return (p.chunks + p.batch - 1) / p.batch }

// shard is the plan for a shard's chunks alone. Its batches are those of p.
func (p *plan) shard(i int) *plan {
	n := p.shards()
	lo, hi := i*p.batches()/n*p.batch, min((i+1)*p.batches()/n*p.batch, p.chunks)
	part := *p
	part.before, part.chunks, part.tokens = p.before+lo, hi-lo, p.tokens[lo*p.context:hi*p.context]
	return &part
}

// byUnits has an engine do the shards, and puts their scores together.
func byUnits(ctx context.Context, m *model.Model, p *plan, opt *Options) (*scores, error) {
	work, ok := opt.Work.(interface {
		store.Shared
		Note(s *store.Standing) error
	})
	if !ok {
		return nil, errors.New("eval: many machines share their work in a folder: give one")
	}
	if err := keepText(work, p.tokens); err != nil {
		return nil, err
	}
	job, err := engine.OfKind(JobKind, &jobSpec{Context: p.context, Tokens: len(p.tokens), ScoreAll: opt.ScoreAll, BOS: opt.BOS,
		Base: opt.Base != nil, Activations: opt.Activations, Outliers: opt.Outliers, BatchTokens: opt.BatchTokens, Precision: m.Precision})
	if err != nil {
		return nil, err
	}
	if err := opt.Engine.Begin(ctx, job); err != nil {
		return nil, err
	}
	var units []engine.Unit
	for i := range p.shards() {
		spec, err := json.Marshal(&unitSpec{i})
		if err != nil {
			return nil, err
		}
		units = append(units, engine.Unit{Name: unitSpec{i}.name(), Spec: spec, Size: int64(p.shard(i).chunks)})
	}
	standing := &store.Standing{Model: m.Source.Name(), Phase: store.PhaseEvaluate, Run: 1, Layers: len(units), Shards: true,
		LayerSeconds: []float64{}}
	since := time.Time{}
	see := func(done []engine.Unit) error {
		for _, u := range done {
			p.progress.Add(u.Size * p.perChunk)
			took := 0.0 // not known of what was there before
			if !since.IsZero() {
				took = time.Since(since).Seconds() / float64(len(done))
			}
			standing.LayerSeconds = append(standing.LayerSeconds, took)
		}
		since = time.Now()
		p.progress.Item(fmt.Sprintf("%d/%d shards", len(standing.LayerSeconds), len(units)))
		return work.Note(standing)
	}
	if err := engine.DoWatched(ctx, opt.Engine, work, units, see); err != nil {
		return nil, err
	}
	s, err := recallScores(work, p, opt.Base != nil)
	if err != nil {
		return nil, err
	}
	return s, finish(work, standing)
}

func keepText(work store.Store, tokens []int32) error {
	w, err := work.Create(textName)
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	if err := binary.Write(w, binary.LittleEndian, tokens); err != nil {
		return err
	}
	return w.Commit()
}

// recallText reads so many tokens.
func recallText(work store.Store, n int) ([]int32, error) {
	return readValue(work, textName, n, func(r io.Reader, n int) ([]int32, error) {
		tokens := make([]int32, n)
		return tokens, binary.Read(r, binary.LittleEndian, tokens)
	})
}

// readValue reads a value that has nothing behind what read takes.
func readValue[T any](work store.Store, name string, n int, read func(r io.Reader, n int) (T, error)) (v T, err error) {
	r, err := work.Open(name)
	if err != nil {
		return v, err
	}
	defer r.Close()
	if v, err = read(r, n); err != nil {
		return v, fmt.Errorf("the work folder: %s: %w", name, err)
	}
	if more, err := io.Copy(io.Discard, r); err != nil || more > 0 {
		return v, errors.Join(err, fmt.Errorf("the work folder: %s: holds %d bytes more than it should", name, more))
	}
	return v, nil
}

// save writes the scores as they are, one kind after the other: float64, and bytes that are 0 or 1.
func (s *scores) save(w io.Writer) error {
	lists := []any{s.nll}
	if s.kl != nil {
		lists = append(lists, s.baseNLL, s.kl, s.top, s.noise, s.same)
	}
	for _, list := range lists {
		if err := binary.Write(w, binary.LittleEndian, list); err != nil {
			return err
		}
	}
	return nil
}

// loadScores reads what save wrote of n tokens.
func loadScores(r io.Reader, n int, base bool) (*scores, error) {
	s := &scores{nll: make([]float64, n)}
	lists := []any{s.nll}
	if base {
		s.baseNLL, s.kl, s.same = make([]float64, n), make([]float64, n), make([]bool, n)
		s.top, s.noise = make([]float64, n), make([]float64, n)
		lists = append(lists, s.baseNLL, s.kl, s.top, s.noise, s.same)
	}
	for _, list := range lists {
		if err := binary.Read(r, binary.LittleEndian, list); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// recallScores puts the shards' scores together.
func recallScores(work store.Store, p *plan, base bool) (*scores, error) {
	all := &scores{}
	for i := range p.shards() {
		s, err := readValue(work, unitSpec{i}.name(), p.shard(i).chunks*p.scored(), func(r io.Reader, n int) (*scores, error) {
			return loadScores(r, n, base)
		})
		if err != nil {
			return nil, err
		}
		all.nll, all.baseNLL, all.kl = append(all.nll, s.nll...), append(all.baseNLL, s.baseNLL...), append(all.kl, s.kl...)
		all.same, all.top, all.noise = append(all.same, s.same...), append(all.top, s.top...), append(all.noise, s.noise...)
	}
	return all, nil
}

// WorkerOptions says how a worker works. The zero value is the default.
type WorkerOptions struct {
	Memory  int64  // as Options.Memory
	TempDir string // as Options.TempDir
}

// worker does the units of an evaluation.
type worker struct {
	models      []*model.Model // the base last, if there is one
	plan        *plan          // of the whole text
	activations *activations
	values      store.Shared
}

// NewWorker returns a worker for a job of kind JobKind, on the models that it is about; base is nil for one without.
func NewWorker(ctx context.Context, m, base *model.Model, spec []byte, values store.Shared, opt WorkerOptions) (engine.Worker, error) {
	var j jobSpec
	if err := json.Unmarshal(spec, &j); err != nil {
		return nil, fmt.Errorf("the job: %w", err)
	}
	if j.Base != (base != nil) {
		return nil, fmt.Errorf("the job says of a base model %v, this worker %v", j.Base, base != nil)
	}
	const most = 1 << 31
	if j.Tokens < 0 || j.Tokens > most {
		return nil, fmt.Errorf("the job: a text of %d tokens", j.Tokens)
	}
	tokens, err := recallText(values, j.Tokens)
	if err != nil {
		return nil, err
	}
	eopt := Options{Context: j.Context, ScoreAll: j.ScoreAll, BOS: j.BOS, Base: base, Activations: j.Activations, Outliers: j.Outliers,
		BatchTokens: j.BatchTokens, Memory: opt.Memory, TempDir: opt.TempDir}
	w := &worker{models: []*model.Model{m}, values: values}
	if base != nil {
		w.models = append(w.models, base)
	}
	for _, m := range w.models {
		m.Precision = j.Precision
	}
	if w.plan, err = newPlan(m, tokens, eopt); err != nil {
		return nil, err
	}
	err = mmap.Guard(func() error {
		w.activations, err = newActivations(ctx, m, w.plan, eopt)
		return err
	})
	return w, err
}

// Close implements engine.Worker.
func (w *worker) Close() error { return nil }

// Do implements engine.Worker.
func (w *worker) Do(ctx context.Context, unit engine.Unit) (digest string, err error) {
	var u unitSpec
	if err := json.Unmarshal(unit.Spec, &u); err != nil {
		return "", fmt.Errorf("the unit: %w", err)
	}
	if u.Shard < 0 || u.Shard >= w.plan.shards() || u.name() != unit.Name {
		return "", fmt.Errorf("the unit %q is of shard %d of %d", unit.Name, u.Shard, w.plan.shards())
	}
	err = mmap.Guard(func() error {
		s, err := pass(ctx, w.plan.shard(u.Shard), w.models, w.activations, nil)
		if err == nil {
			digest, err = w.values.Put(unit.Name, true, s.save)
		}
		return err
	})
	return digest, err
}
