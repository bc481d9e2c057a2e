package pipeline

import (
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// gradientsWorker does the units of backwardPass.byUnits.
type gradientsWorker struct {
	*task
	values store.Shared
	of     batching
	seqs   [][]int32
	st     *model.State
	room   *stateBudget
	// layer or head is what the last unit has had; the other is nil.
	layer   *model.Layer
	head    *model.Head
	batches map[int]*workedBatch
	// layers counts those that units have been of so far, forth and back, the last one with it.
	layers, at int
	forth      bool
}

// workedBatch is a batch on its way, which has done so many steps: each of the layers forth, the head, and layers back from the last one on.
type workedBatch struct {
	*backwardPass
	done   int
	layers int // gradientsWorker.layers when it was last there
}

func newGradientsWorker(ctx context.Context, src Source, r Recipe, spec []byte, values store.Shared, opt WorkerOptions) (*gradientsWorker, error) {
	var job gradientsJob
	if err := json.Unmarshal(spec, &job); err != nil {
		return nil, fmt.Errorf("the job: %w", err)
	}
	if err := isAbout(src, job.Source); err != nil {
		return nil, err
	}
	if job.SeqLen < 1 || job.Batches < 1 || job.Sequences < job.Batches {
		return nil, fmt.Errorf("the job: %d sequences of %d tokens in %d batches", job.Sequences, job.SeqLen, job.Batches)
	}
	p, err := NewPlan(src, r)
	if err == nil {
		p, err = job.apply(p)
	}
	if err != nil {
		return nil, err
	}
	seqs, err := recallTokens(values, gradientsTokens, job.Sequences)
	if err != nil {
		return nil, err
	}
	m, err := arch.Open(src)
	if err != nil {
		return nil, err
	}
	t := &task{ctx: ctx, src: src, m: m, plan: p, tempDir: opt.TempDir,
		opt: Options{Calib: &calib.Set{SeqLen: job.SeqLen}, Memory: opt.Memory, Progress: silent{}}}
	return &gradientsWorker{task: t, values: values, of: states.Evenly(job.Sequences, job.Batches), seqs: seqs, st: m.NewState(),
		room: newStateBudget(opt.Memory), batches: map[int]*workedBatch{}}, nil
}

// Close implements engine.Worker.
func (w *gradientsWorker) Close() error {
	var err error
	for batch := range w.batches {
		err = errors.Join(err, w.leave(batch))
	}
	w.release()
	return err
}

// leave drops the hidden states of a batch.
func (w *gradientsWorker) leave(batch int) error {
	b := w.batches[batch]
	if b == nil {
		return nil
	}
	delete(w.batches, batch)
	return b.close()
}

// release gives back the layer or the head.
func (w *gradientsWorker) release() {
	if w.layer != nil {
		w.layer.Release()
	}
	if w.head != nil {
		w.head.Release()
	}
	w.layer, w.head = nil, nil
}

// enter loads a layer, unless it is there.
func (w *gradientsWorker) enter(i int) (*model.Layer, error) {
	if w.layer == nil || w.layer.Index != i {
		w.release()
		l, err := w.m.LoadLayer(i)
		if err != nil {
			return nil, err
		}
		w.layer = l
	}
	return w.layer, nil
}

// Do implements engine.Worker.
func (w *gradientsWorker) Do(ctx context.Context, unit engine.Unit) (digest string, err error) {
	var u gradientsUnit
	if err := json.Unmarshal(unit.Spec, &u); err != nil {
		return "", fmt.Errorf("the unit: %w", err)
	}
	if name := u.name(); name != unit.Name {
		return "", fmt.Errorf("the unit's name is %q, of what it says %q", unit.Name, name)
	}
	n := w.m.Layers()
	first, last := u.batches()
	if u.Layer < 0 || u.Layer > n || u.Layer == n && !u.Forth || first < 0 || last <= first || last > w.of.batches() {
		return "", fmt.Errorf("the unit %q is of none of %d layers, or of %d batches", unit.Name, n, w.of.batches())
	}
	// A half's name does not tell where it ends.
	if lo, hi := w.of.half(w.of.halfOf(first)); u.Back && u.Last > 0 && (first != lo || last != hi) || u.Halves && last-first < w.of.batches() {
		return "", fmt.Errorf("the unit %q is of the batches %d to %d, no half of %d", unit.Name, first, last-1, w.of.batches())
	}
	w.ctx = ctx
	err = mmap.Guard(func() error {
		save, err := w.value(&u)
		if err == nil {
			digest, err = w.values.Put(unit.Name, false, save)
		}
		return err
	})
	if err != nil && (u.Forth || u.Back) { // hidden states may be anywhere
		for batch := first; batch < last; batch++ {
			err = errors.Join(err, w.leave(batch))
		}
	}
	return digest, err
}

// value does a unit, and returns what writes its value.
func (w *gradientsWorker) value(u *gradientsUnit) (save func(io.Writer) error, err error) {
	if err := w.pass(u); err != nil {
		return nil, err
	}
	if u.Forth {
		if b := w.batches[u.First]; b == nil || b.done <= u.Layer {
			_, err = w.bring(u.First, u.Layer+1)
		}
		return func(io.Writer) error { return nil }, err
	}
	l, err := w.enter(u.Layer)
	if err != nil {
		return nil, err
	}
	of := newBackwardPass(w.task, nil, nil, w.of, span{})
	of.st = w.st
	groups := of.groups(l)
	if u.Group < 0 || u.Group >= len(groups) {
		return nil, fmt.Errorf("layer %d has %d groups of linears, the unit is of group %d", u.Layer, len(groups), u.Group)
	}
	linears, last := groups[u.Group], u.Group == len(groups)-1
	parts := of.parts(linears)
	if !u.Back {
		if u.Part < 0 || u.Part >= len(parts) {
			return nil, fmt.Errorf("the group has %d parts, the unit is of part %d", len(parts), u.Part)
		}
		return w.add(of, u, parts)
	}
	sums := of.sums(linears)
	var opaque []string
	for first, end := u.batches(); first < end; first++ {
		if opaque, err = w.back(first, u.Layer, sums, last); err != nil {
			return nil, err
		}
	}
	var before []string // digests, so that that of the last part is one of all
	names := u.parts(len(parts))
	for part, name := range names[:len(names)-1] {
		digest, err := w.values.Put(name, false, func(dst io.Writer) error { return saveSums(dst, parts[part], sums, opaque, nil) })
		if err != nil {
			return nil, err
		}
		before = append(before, digest)
	}
	return func(dst io.Writer) error { return saveSums(dst, parts[len(parts)-1], sums, opaque, before) }, nil
}

// back takes a batch back through a layer, if it is for the last time, and adds its gradients to the sums. It returns the branches without a derivative.
func (w *gradientsWorker) back(batch, layer int, sums map[string]*outputSums, last bool) (opaque []string, err error) {
	b, err := w.bring(batch, 2*w.m.Layers()-layer)
	if err != nil {
		return nil, err
	}
	l, err := w.enter(layer) // bringing the batch may have taken other layers
	if err != nil {
		return nil, err
	}
	if opaque, err = b.observe(layer, l, sums, last, nil); err != nil || !last {
		return opaque, err
	}
	b.done++
	if err := b.drop(layer); err != nil {
		return nil, err
	}
	if layer == 0 { // it has come to its end
		return opaque, w.leave(batch)
	}
	return opaque, nil
}

// pass notes which layer units are of, and drops the batches that have not been through the one before: they are other workers' by now.
func (w *gradientsWorker) pass(u *gradientsUnit) error {
	if w.layers == 0 || w.at != u.Layer || w.forth != u.Forth {
		w.layers++
		w.at, w.forth = u.Layer, u.Forth
	}
	for batch, b := range w.batches {
		if b.layers+1 < w.layers {
			if err := w.leave(batch); err != nil {
				return err
			}
		}
	}
	return nil
}

// bring takes a batch to where it has done so many steps.
func (w *gradientsWorker) bring(batch, steps int) (*workedBatch, error) {
	b := w.batches[batch]
	if b != nil && b.done > steps {
		if err := w.leave(batch); err != nil {
			return nil, err
		}
		b = nil
	}
	if b == nil {
		lo, hi := w.of.sequences(batch)
		b = &workedBatch{backwardPass: newBackwardPass(w.task, nil, w.seqs[lo:hi], w.of, span{batch, batch + 1})}
		b.st, b.room = w.st, w.room
		w.batches[batch] = b
		if err := b.embed(); err != nil {
			return nil, err
		}
	}
	for b.done < steps {
		if err := w.step(b); err != nil {
			return nil, err
		}
		b.done++
	}
	b.layers = w.layers
	return b, nil
}

// step takes a batch through the next layer, forth or back, or the head, without summing anything.
func (w *gradientsWorker) step(b *workedBatch) error {
	n := w.m.Layers()
	switch {
	case b.done < n:
		l, err := w.enter(b.done)
		if err != nil {
			return err
		}
		return b.forth(l)
	case b.done == n:
		if w.head == nil {
			w.release()
			var err error
			if w.head, err = w.m.LoadHead(); err != nil {
				return err
			}
		}
		return b.head(w.head)
	}
	i := 2*n - b.done
	l, err := w.enter(i)
	if err != nil {
		return err
	}
	if _, err := b.observe(i, l, nil, true, nil); err != nil {
		return err
	}
	return b.drop(i)
}

// terms are the values that an add unit adds, of so many parts: lists, each of which is summed in order, and then these sums.
func (w *gradientsWorker) terms(u *gradientsUnit, parts int) [][]string {
	value := func(first, last int) string {
		back := gradientsUnit{Layer: u.Layer, Group: u.Group, Back: true, First: first, Last: last}
		return back.parts(parts)[u.Part]
	}
	_, middle := w.of.half(0)
	var terms [][]string
	for half := range w.of.halves() {
		first, last := w.of.half(half)
		if u.Halves {
			terms = append(terms, []string{value(first, last)})
			continue
		}
		var names []string
		if lo := u.First; lo > first && lo < last {
			names = []string{u.before(lo)}
		}
		for batch := max(first, u.First); batch < min(last, u.Last); batch++ {
			names = append(names, value(batch, 0))
		}
		if len(names) > 0 {
			terms = append(terms, names)
		}
	}
	if u.First >= middle && u.Last == w.of.batches() {
		terms = append(terms, []string{u.before(middle)})
	}
	return terms
}

// add adds a part's sums over batches to those before them, in their order. Of all batches it makes the Hessians.
func (w *gradientsWorker) add(of *backwardPass, u *gradientsUnit, parts [][]*model.Linear) (func(io.Writer) error, error) {
	of.rest()
	linears := parts[u.Part]
	sums := of.sums(linears)
	var opaque []string
	for k, names := range w.terms(u, len(parts)) {
		into := sums
		if k > 0 && len(names) > 1 {
			into = of.sums(linears)
		}
		for _, name := range names {
			h, err := addValue(w.values, name, linears, into)
			if err != nil {
				return nil, err
			}
			opaque = h.Opaque
		}
		if k > 0 && len(names) > 1 {
			for id, s := range into {
				sums[id].join(s)
			}
		}
	}
	if u.Last < w.of.batches() {
		return func(dst io.Writer) error { return saveSums(dst, linears, sums, opaque, nil) }, nil
	}
	v := verdicts{Of: make([]verdict, len(linears)), Opaque: opaque}
	for j, lin := range linears {
		s := sums[lin.ID()]
		if s.empty() {
			continue
		}
		var err error
		if v.Of[j], err = s.judge(); err != nil {
			return nil, fmt.Errorf("%s: %w", lin.ID(), err)
		}
	}
	return func(dst io.Writer) error {
		if err := gob.NewEncoder(dst).Encode(&v); err != nil {
			return err
		}
		for j, lin := range linears {
			if !v.Of[j].Pays {
				continue
			}
			err := eachTriangle(sums[lin.ID()].fit, func(row []float32) error {
				_, err := dst.Write(raw(row))
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	}, nil
}
