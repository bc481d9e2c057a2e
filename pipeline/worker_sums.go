package pipeline

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
)

// workedSums are the statistics of a stage's site, and what has been made of them.
type workedSums struct {
	name    string // of their first part
	in      *quant.Stats
	solver  quant.Solver
	batches *workedBatches // of the stage's one linear; nil: none yet
	stays   bool           // that linear's rows stay as they are: there are no batches
}

// madeSums are what a worker has itself put into the store of a stage's sums, and need not read there: of one half or bundle, its share where
// there are as many machines. With those that it is making, that is one more than a run without an engine has.
type madeSums struct {
	name  string                  // of the sums' first part
	parts map[string]*quant.Stats // by the names of their parts
	sums  *partialStats           // nil: none yet
}

// madeOf returns what has been made of the sums that u is about: of no others is anything kept.
func (w *Worker) madeOf(u *unitSpec) *madeSums {
	name := summed(w.kept, u.Layer, u.Stage, 1)[0]
	if w.made == nil || w.made.name != name {
		w.made = &madeSums{name: name, parts: map[string]*quant.Stats{}}
	}
	return w.made
}

// observe makes the statistics of a site's inputs, or of all experts' together, over a shard, or a bundle or a half of them.
func (w *Worker) observe(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	if u.Stage >= len(w.layer.l.Stages) {
		return nil, fmt.Errorf("layer %d has no stage %d", u.Layer, u.Stage)
	}
	width := w.layer.l.Stages[u.Stage].Width()
	if !bundled(width) {
		clear(w.madeOf(u).parts) // there is no room for another set
	}
	return w.overShards(u, width, func(shard int, sums *quant.Stats) (*quant.Stats, error) {
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

// overShards puts the sum of the statistics of a unit's shards, of inputs with in features, in their order: of makes those of one, and returns
// either them, or sums, which are those of the shards of its bundle before, once it has added them there.
func (w *Worker) overShards(u *unitSpec, in int, of func(shard int, sums *quant.Stats) (*quant.Stats, error)) (func(io.Writer) error, error) {
	var all, sums *quant.Stats
	end := func() {
		if all == nil {
			all = sums
		} else {
			all.Add(sums)
		}
		sums = nil
	}
	n := shardCount(w.text.batches())
	lo, hi := u.shards(w.text.batches())
	for shard := lo; shard < hi; shard++ {
		if shard > lo && bundled(in) && bundleOf(shard, n) > bundleOf(shard-1, n) {
			end()
		}
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
	if end(); all == nil {
		return nil, fmt.Errorf("the unit is of shards %d to %d", lo, hi)
	}
	return w.observed(u, all)
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
	if made := w.madeOf(u); (u.Half || u.Bundle) && len(made.parts) == 0 {
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
	made := w.madeOf(u)
	if w.sums != nil && w.sums.name != made.name {
		w.sums = nil // the room that they take is needed
	}
	if made.sums == nil {
		made.sums = newPartialStats(in)
	}
	return func(dst io.Writer) error {
		t, err := w.observedTree(u, made, part, in, out)
		if err != nil {
			return err
		}
		defer t.close()
		importance, err := addStats(dst, t, made.sums, part, in)
		if err != nil {
			return err
		}
		return checkInputs(fmt.Sprintf("stage %d", u.Stage), importance)
	}, nil
}

// observedTree opens a part of what has been observed of all shards, or bundles, as it is to be added: shards to their bundle, bundles to their half,
// halves to each other.
func (w *Worker) observedTree(u *unitSpec, made *madeSums, part statsPart, in, out int) (*statsTree, error) {
	all := &statsTree{}
	n := shardCount(w.text.batches())
	atHalf, atBundle := -1, -1
	observed := *u
	observed.Kind, observed.Part = unitObserve, 0
	for observed.Shard = range observed.count(w.text.batches()) {
		half, bundle := 0, 0
		first, _ := observed.shards(w.text.batches())
		if halved(in) {
			half = halfOf(first, n)
		}
		if bundled(in) {
			bundle = bundleOf(first, n)
		}
		if half != atHalf {
			all.of = append(all.of, &statsTree{})
			atBundle = -1
		}
		of := all.of[len(all.of)-1]
		if bundle != atBundle {
			of.of = append(of.of, &statsTree{})
		}
		of = of.of[len(of.of)-1]
		atHalf, atBundle = half, bundle
		name := observed.observed(w.kept, part.parts)[part.part]
		r, err := openMade(w.values, made.parts[name], name, part, in, out)
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		of.of = append(of.of, &statsTree{r: r})
	}
	return all, nil
}

// summed returns the statistics of a stage's site, or of all of its experts.
func (w *Worker) summed(u *unitSpec) (*workedSums, error) {
	name := summed(w.kept, u.Layer, u.Stage, 1)[0]
	if w.sums == nil || w.sums.name != name {
		in, out, err := w.shape(u)
		if err != nil {
			return nil, err
		}
		made := w.madeOf(u)
		w.sums, w.made = nil, nil // the room that they take is needed
		var s *quant.Stats
		if u.Half {
			s, err = w.addHalves(u, made, in, out)
		} else {
			s, err = made.whole(w.values, summed(w.kept, u.Layer, u.Stage, statsParts(in)), in, out)
		}
		if err != nil {
			return nil, err
		}
		w.sums = &workedSums{name: name, in: s, solver: w.plan.Recipe.Method.Open(s)}
	}
	return w.sums, nil
}

// whole returns statistics whose parts have names, of inputs with in features and of out outputs where they have a Shortfall.
func (m *madeSums) whole(values store.Store, names []string, in, out int) (*quant.Stats, error) {
	s := m.sums
	if s == nil {
		s = newPartialStats(in)
	}
	return s.Stats, s.complete(values, names, in, out)
}

// addHalves returns the sum of both halves of a stage's statistics. It takes the place of that which the worker has made, if it has.
func (w *Worker) addHalves(u *unitSpec, made *madeSums, in, out int) (*quant.Stats, error) {
	parts := statsParts(in)
	names := halves(w.kept, u.Layer, u.Stage, parts, w.text.batches())
	var s *quant.Stats
	for i, half := range names {
		if s = made.parts[half[0]]; s != nil {
			names = slices.Delete(names, i, i+1)
			break
		}
	}
	for _, half := range names { // of two, which is added to which does not matter
		if s == nil {
			first := newPartialStats(in)
			if err := first.complete(w.values, half, in, out); err != nil {
				return nil, err
			}
			s = first.Stats
			continue
		}
		for i, name := range half {
			if err := addPart(s, w.values, name, statsPart{i, parts}, in, out); err != nil {
				return nil, err
			}
		}
	}
	gemm.Mirror(s.H)
	s.Apart = false
	return s, checkInputs(fmt.Sprintf("stage %d", u.Stage), s.Importance())
}

// observeHead makes the statistics of the head's inputs over a shard.
func (w *Worker) observeHead(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	h, err := w.m.LoadHead()
	if err != nil {
		return nil, err
	}
	defer h.Release()
	return w.overShards(u, w.m.Dim, func(shard int, _ *quant.Stats) (*quant.Stats, error) {
		s, err := w.shard(shard, u.Layer, 0)
		if err != nil {
			return nil, err
		}
		return p.observeHead(s.s, s.original, h)
	})
}
