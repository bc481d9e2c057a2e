package pipeline

import (
	"bufio"
	"context"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// With Options.Engine the pass of gradients is units of work: batches of the text pass through a layer, forth or back, wherever they are,
// and their sums are added in order. In the work folder are
//
//	gradients-tokens                           the sequences that gradients are taken of
//	gradients-forthI-batchB                    nothing: batch B has passed layer I, or the head behind the last one, on one machine
//	gradients-layerI-groupG-batchB             sums over batch B at the outputs of a group's linears: their last part, after those
//	                                           whose names end in -partP
//	gradients-layerI-groupG-partP-beforeB      a part's sums over all batches before B; of all batches, H_O and the verdicts
//
// A machine that has lost a batch's hidden states, or never had them, makes them again from the tokens.
const gradientsPrefix = "gradients-"

const gradientsTokens = gradientsPrefix + "tokens"

var (
	// gradientPartBytes is how many bytes of sums are a part: linears that are added together. Tests take fewer.
	gradientPartBytes = int64(64 << 20)
	// gradientsTogether is how many batches' sums are in the work folder at a time. Tests take fewer.
	gradientsTogether = Shards
)

// gradientsJob is what a worker must know of the pass besides the checkpoint and the recipe.
type gradientsJob struct {
	jobSpec      // Sequences are those that gradients are taken of
	PerBatch int // sequences
}

// gradientsUnit is a unit of the pass. Of Layer, which is the number of layers for the head,
type gradientsUnit struct {
	Layer int
	Forth bool `json:",omitempty"` // batch First passes it forth; else it
	Back  bool `json:",omitempty"` // passes it back, and is summed; else
	Group int  `json:",omitempty"`
	Part  int  `json:",omitempty"` // of a group's sums is added over batches
	First int  // the first one, or the only one
	Last  int  `json:",omitempty"` // the one behind the last
}

func (u *gradientsUnit) name() string {
	switch {
	case u.Forth:
		return fmt.Sprintf("%sforth%04d-batch%05d", gradientsPrefix, u.Layer, u.First)
	case u.Back:
		return fmt.Sprintf("%s-batch%05d", u.group(), u.First)
	default:
		return u.before(u.Last)
	}
}

func (u *gradientsUnit) group() string {
	return fmt.Sprintf("%slayer%04d-group%02d", gradientsPrefix, u.Layer, u.Group)
}

// before is the name of a part's sums over all batches before one.
func (u *gradientsUnit) before(batch int) string {
	return fmt.Sprintf("%s-part%04d-before%05d", u.group(), u.Part, batch)
}

// parts are the names of the values of a batch that goes back, of so many parts: the unit's own is the last.
func (u *gradientsUnit) parts(n int) (names []string) {
	for part := range n - 1 {
		names = append(names, fmt.Sprintf("%s-part%04d", u.name(), part))
	}
	return append(names, u.name())
}

func (u *gradientsUnit) unit(size int) engine.Unit {
	spec, err := json.Marshal(u)
	if err != nil {
		panic(err) // numbers
	}
	e := engine.Unit{Name: u.name(), Spec: spec, Size: int64(size)}
	if u.Forth || u.Back {
		e.Key = fmt.Sprintf("batch%05d", u.First)
	}
	return e
}

// forgetGradients removes what the units of the pass have put out.
func forgetGradients(values Work) error { return deletePrefixed(values, gradientsPrefix) }

func deletePrefixed(values Work, prefix string) error {
	names, err := values.Names()
	if err != nil {
		return err
	}
	return values.Delete(slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, prefix) })...)
}

// parts divides a group's linears into those whose sums are added together, in order; there is at least one part.
func (b *backwardPass) parts(linears []*model.Linear) [][]*model.Linear {
	parts := [][]*model.Linear{nil}
	var bytes int64
	for _, lin := range linears {
		n := outputBytes(lin.Out, b.m.Dim, lin.Expert >= 0)
		if last := len(parts) - 1; bytes+n > gradientPartBytes && len(parts[last]) > 0 {
			parts, bytes = append(parts, nil), 0
		}
		last := len(parts) - 1
		parts[last] = append(parts[last], lin)
		bytes += n
	}
	return parts
}

// byUnits is byLayer with its work handed out by an engine.
func (b *backwardPass) byUnits(p *passage) error {
	if err := keepValue(b.opt.Work, gradientsTokens, b.seqs); err != nil {
		return err
	}
	spec, err := p.job()
	if err != nil {
		return err
	}
	spec.Sequences = len(b.seqs)
	job, err := engine.OfKind(jobGradients, &gradientsJob{*spec, b.of.perBatch})
	if err != nil {
		return err
	}
	if err := b.opt.Engine.Begin(b.ctx, job); err != nil {
		return err
	}
	// Workers of a run that has ended have taken their hidden states with them.
	if err := deletePrefixed(b.opt.Work, gradientsPrefix+"forth"); err != nil {
		return err
	}
	n := b.m.Layers()
	for i := range n + 1 {
		b.opt.Progress.Item(fmt.Sprintf("predictions: layer %d/%d", min(i+1, n), n))
		if err := b.opt.Engine.Do(b.ctx, b.units(gradientsUnit{Layer: i, Forth: true}, 0, b.of.batches())); err != nil {
			return err
		}
	}
	for i := n - 1; i >= 0; i-- {
		b.opt.Progress.Item(fmt.Sprintf("gradients of layer %d/%d", i+1, n))
		if err := b.layerByUnits(p.kept, i); err != nil {
			return fmt.Errorf("gradients: layer %d: %w", i, err)
		}
	}
	return nil
}

// units returns a unit for each of the batches [first,last).
func (b *backwardPass) units(u gradientsUnit, first, last int) (units []engine.Unit) {
	for u.First = first; u.First < last; u.First++ {
		lo, hi := b.of.sequences(u.First)
		units = append(units, u.unit(hi-lo))
	}
	return units
}

// layerByUnits is layer with its work handed out.
func (b *backwardPass) layerByUnits(k *keeper, i int) error {
	l, err := b.m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	groups := b.groups(l)
	for g, linears := range groups {
		parts := b.parts(linears)
		u := gradientsUnit{Layer: i, Group: g}
		first, err := b.sumsFrom(k, u, len(parts))
		if err != nil {
			return err
		}
		for ; first < b.of.batches(); first += gradientsTogether {
			if err := b.sumByUnits(k, u, len(parts), first, min(first+gradientsTogether, b.of.batches())); err != nil {
				return err
			}
		}
		for u.Part = range parts {
			name := u.before(b.of.batches())
			if err := b.takePart(name, i, parts[u.Part], g == len(groups)-1 && u.Part == 0); err != nil {
				return fmt.Errorf("the work folder: %s: %w", name, err)
			}
		}
	}
	return nil
}

// sumsFrom returns the first of the batches that are summed together from which on a run has to go on: the last ones whose sums with all
// before them are there, as what was made on the way to those has gone.
func (b *backwardPass) sumsFrom(k *keeper, u gradientsUnit, parts int) (first int, err error) {
	n := b.of.batches()
	for first = (n - 1) / gradientsTogether * gradientsTogether; first > 0; first -= gradientsTogether {
		var names []string
		for u.Part = range parts {
			names = append(names, u.before(min(first+gradientsTogether, n)))
		}
		if ok, err := k.allWhole(names); err != nil || ok {
			return first, err
		}
	}
	return 0, nil
}

// sumByUnits has the parts' sums over all batches before last made, from those before first.
func (b *backwardPass) sumByUnits(k *keeper, u gradientsUnit, parts, first, last int) error {
	add := u
	add.First, add.Last = first, last
	var sums []engine.Unit
	var before []string // values that are not needed any more then
	for add.Part = range parts {
		sums = append(sums, add.unit(1))
		if first > 0 {
			before = append(before, add.before(first))
		}
	}
	var names []string
	for _, unit := range sums {
		names = append(names, unit.Name)
	}
	ok, err := k.allWhole(names)
	if err != nil {
		return err
	}
	u.Back = true
	back := b.units(u, first, last)
	for u.First = first; u.First < last; u.First++ {
		names := u.parts(parts)
		before = append(before, names...)
		if ok || parts == 1 {
			continue
		}
		// An engine looks for the last part alone.
		all, err := k.allWhole(names)
		if err == nil && !all {
			err = b.opt.Work.Delete(names[parts-1])
		}
		if err != nil {
			return err
		}
	}
	if !ok {
		if err := b.opt.Engine.Do(b.ctx, back); err != nil {
			return err
		}
		if err := b.opt.Engine.Do(b.ctx, sums); err != nil {
			return err
		}
	}
	return b.opt.Work.Delete(before...)
}

// takePart stores the Hessians of a part's linears of layer i, and notes the layer's branches without a derivative if it is told to.
func (b *backwardPass) takePart(name string, i int, linears []*model.Linear, opaque bool) error {
	f, err := b.opt.Work.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16) // gob reads no further than it must from what can read single bytes
	var v verdicts
	if err := gob.NewDecoder(r).Decode(&v); err != nil {
		return err
	}
	if len(v.Of) != len(linears) {
		return fmt.Errorf("verdicts on %d linears of %d", len(v.Of), len(linears))
	}
	if opaque {
		b.noteOpaque(i, v.Opaque)
	}
	for j, lin := range linears {
		if !v.Of[j].Seen {
			continue
		}
		b.take(v.Of[j])
		if !v.Of[j].Pays {
			continue
		}
		blocks := b.newBlocks(lin)
		if err := eachTriangle(blocks, func(row []float32) error { return readRow(r, row) }); err != nil {
			return err
		}
		if err := b.put(lin.ID(), blocks); err != nil {
			return err
		}
	}
	return nil
}

// verdicts are what there is to tell of a part's Hessians, whose lower triangles follow, of those that pay.
type verdicts struct {
	Of     []verdict // on each linear
	Opaque []string
}

// gradientSums begin a part's sums. Of each linear the lower triangles of its fit follow, then of its held, where there are such.
type gradientSums struct {
	Fit, Held []int    // tokens of each linear
	Opaque    []string // branches of the layer without a derivative
	Before    []string // in the last part of a batch, the digests of the parts before it
}

// eachTriangle calls do for what rows of blocks have on and below the diagonal.
func eachTriangle(blocks []*tensor.Matrix, do func(row []float32) error) error {
	for _, h := range blocks {
		for i := range h.Rows {
			if err := do(h.Row(i)[:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func readRow(r io.Reader, row []float32) error {
	_, err := io.ReadFull(r, raw(row))
	return err
}

// saveSums writes the sums of a part's linears.
func saveSums(w io.Writer, linears []*model.Linear, sums map[string]*outputSums, opaque, before []string) error {
	h := gradientSums{Opaque: opaque, Before: before}
	for _, lin := range linears {
		s := sums[lin.ID()]
		h.Fit, h.Held = append(h.Fit, s.tokens), append(h.Held, s.heldTokens)
	}
	if err := gob.NewEncoder(w).Encode(&h); err != nil {
		return err
	}
	write := func(row []float32) error {
		_, err := w.Write(raw(row))
		return err
	}
	for j, lin := range linears {
		s := sums[lin.ID()]
		if h.Fit[j] > 0 {
			if err := eachTriangle(s.fit, write); err != nil {
				return err
			}
		}
		if h.Held[j] > 0 {
			if err := eachTriangle(s.held, write); err != nil {
				return err
			}
		}
	}
	return nil
}

// addSums adds what saveSums has written of a part to its linears' sums, and returns what it begins with.
func addSums(values store.Store, name string, linears []*model.Linear, sums map[string]*outputSums) (h gradientSums, err error) {
	f, err := values.Open(name)
	if err != nil {
		return h, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16)
	if err := gob.NewDecoder(r).Decode(&h); err != nil {
		return h, fmt.Errorf("the work folder: %s: %w", name, err)
	}
	if n := len(linears); len(h.Fit) != n || len(h.Held) != n {
		return h, fmt.Errorf("the work folder: %s: sums of %d linears, where %d are to be", name, len(h.Fit), n)
	}
	var term []float32
	add := func(row []float32) error {
		term = slices.Grow(term[:0], len(row))[:len(row)]
		err := readRow(r, term)
		vector.Axpy(row, 1, term)
		return err
	}
	for j, lin := range linears {
		s := sums[lin.ID()]
		s.tokens += h.Fit[j]
		s.heldTokens += h.Held[j]
		if h.Fit[j] > 0 {
			err = eachTriangle(s.fit, add)
		}
		if h.Held[j] > 0 && err == nil {
			err = eachTriangle(s.held, add)
		}
		if err != nil {
			return h, fmt.Errorf("the work folder: %s: %w", name, err)
		}
	}
	return h, nil
}

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
	if job.Sequences < 1 || job.PerBatch < 1 || job.SeqLen < 1 {
		return nil, fmt.Errorf("the job: %d sequences of %d tokens in batches of %d", job.Sequences, job.SeqLen, job.PerBatch)
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
	return &gradientsWorker{task: t, values: values, of: batching{job.Sequences, job.PerBatch}, seqs: seqs, st: m.NewState(),
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
	n, last := w.m.Layers(), u.Last-1
	if u.Forth || u.Back {
		last = u.First
	}
	if u.Layer < 0 || u.Layer > n || u.Layer == n && !u.Forth || u.First < 0 || last < u.First || last >= w.of.batches() {
		return "", fmt.Errorf("the unit %q is of none of %d layers, or of %d batches", unit.Name, n, w.of.batches())
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
		err = errors.Join(err, w.leave(u.First))
	}
	return digest, err
}

// value does a unit, and returns what writes its value.
func (w *gradientsWorker) value(u *gradientsUnit) (save func(io.Writer) error, err error) {
	n := w.m.Layers()
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
	of := newBackwardPass(w.task, nil, nil, w.of, 0)
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
	b, err := w.bring(u.First, 2*n-u.Layer)
	if err != nil {
		return nil, err
	}
	if l, err = w.enter(u.Layer); err != nil { // bringing the batch may have taken other layers
		return nil, err
	}
	sums := b.sums(linears)
	opaque, err := b.observe(u.Layer, l, sums, last)
	if err != nil {
		return nil, err
	}
	if last {
		b.done++
		if err := b.drop(u.Layer); err != nil {
			return nil, err
		}
		if u.Layer == 0 { // it has come to its end
			if err := w.leave(u.First); err != nil {
				return nil, err
			}
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
		b = &workedBatch{backwardPass: newBackwardPass(w.task, nil, w.seqs[lo:hi], w.of, batch)}
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
	if _, err := b.observe(i, l, nil, true); err != nil {
		return err
	}
	return b.drop(i)
}

// add adds a part's sums over batches to those before them, in their order. Of all batches it makes the Hessians.
func (w *gradientsWorker) add(of *backwardPass, u *gradientsUnit, parts [][]*model.Linear) (func(io.Writer) error, error) {
	of.rest()
	linears := parts[u.Part]
	sums := of.sums(linears)
	names := []string{u.before(u.First)}
	if u.First == 0 {
		names = nil
	}
	back := gradientsUnit{Layer: u.Layer, Group: u.Group, Back: true}
	for back.First = u.First; back.First < u.Last; back.First++ {
		names = append(names, back.parts(len(parts))[u.Part])
	}
	var opaque []string
	for _, name := range names {
		h, err := addSums(w.values, name, linears, sums)
		if err != nil {
			return nil, err
		}
		opaque = h.Opaque
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
