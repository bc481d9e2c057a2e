package pipeline

import (
	"fmt"
	"io"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
)

// workedSums are the statistics of a stage's site, and what has been made of them.
type workedSums struct {
	name    string // of their first part
	in      *quant.Stats
	solver  quant.Solver
	batches *workedBatches // of the stage's one linear; nil: none yet
	stays   bool           // that linear's rows stay as they are: there are no batches
}

// mostMade is how many bundles' statistics a worker keeps until they are summed: its share where there are two machines. With those that it is
// making, that is one more than a run without an engine has.
const mostMade = shardBundles / 2

// madeSums are what a worker has itself put into the store of a stage's sums, and need not read there.
type madeSums struct {
	name    string                  // of the sums' first part
	bundles int                     // observe units of the stage whose statistics these are
	parts   map[string]*quant.Stats // by the names of their parts
	sums    *partialStats           // nil: none yet
}

// madeOf returns what has been made of the sums that u is about: of no others is anything kept.
func (w *Worker) madeOf(u *unitSpec) *madeSums {
	name := summed(w.kept, u.Layer, u.Stage, 1)[0]
	if w.made == nil || w.made.name != name {
		w.made = &madeSums{name: name, parts: map[string]*quant.Stats{}}
	}
	return w.made
}

// observe makes the statistics of a site's inputs, or of all experts' together, over a shard, or a bundle of them.
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
			}
			at.into.Apart = true // whatever the shards before it were
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

// overShards puts the sum of the statistics of a unit's shards, in their order: of makes those of one, and returns either them, or sums, which
// are those of the shards before, once it has added them there.
func (w *Worker) overShards(u *unitSpec, of func(shard int, sums *quant.Stats) (*quant.Stats, error)) (func(io.Writer) error, error) {
	var sums *quant.Stats
	lo, hi := u.shards(w.batches())
	for shard := lo; shard < hi; shard++ {
		s, err := of(shard, sums)
		switch {
		case err != nil:
			return nil, err
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
	if made := w.madeOf(u); u.Bundle && made.bundles < mostMade {
		made.bundles++
		for _, name := range names {
			made.parts[name] = s
		}
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
	names := [][]string{nil} // of bundles
	observed := *u
	observed.Kind, observed.Part = unitObserve, 0
	for observed.Shard = range observed.count(w.batches()) {
		if n := shardCount(w.batches()); !u.Bundle && bundled(in) && bundleOf(observed.Shard, n) == len(names) {
			names = append(names, nil)
		}
		last := len(names) - 1
		names[last] = append(names[last], observed.observed(w.kept, part.parts)[part.part])
	}
	made := w.madeOf(u)
	if w.sums != nil && w.sums.name != made.name {
		w.sums = nil // the room that they take is needed
	}
	if made.sums == nil {
		made.sums = newPartialStats(in)
	}
	return func(dst io.Writer) error {
		importance, err := addStats(dst, w.values, names, made.parts, made.sums, part, in, out)
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
		s := w.madeOf(u).sums
		if s == nil {
			s = newPartialStats(in)
		}
		w.sums, w.made = nil, nil // the room that they take is needed
		if err := s.complete(w.values, summed(w.kept, u.Layer, u.Stage, statsParts(in)), in, out); err != nil {
			return nil, err
		}
		w.sums = &workedSums{name: name, in: s.Stats, solver: w.plan.Recipe.Method.Open(s.Stats)}
	}
	return w.sums, nil
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
