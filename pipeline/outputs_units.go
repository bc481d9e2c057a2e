package pipeline

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/model"
)

// With Options.Engine the pass of gradients is units of work: batches of the text pass through a layer, forth or back, wherever they are,
// and their sums are added in order, those of either half of the batches by themselves: see batching.half. Where one or two machines take
// part, each has all batches of a half and puts out one sum of them, else one of each batch. In the work folder are
//
//	gradients-tokens                           the sequences that gradients are taken of
//	gradients-forthI-batchB                    nothing: batch B has passed layer I, or the head behind the last one, on one machine
//	gradients-layerI-groupG-halfB              sums over the half that begins with batch B at the outputs of a group's linears: their last
//	                                           part, after those whose names end in -partP
//	gradients-layerI-groupG-batchB             likewise over batch B
//	gradients-layerI-groupG-partP-beforeB      a part's sums over the batches of a half before B; of all batches, H_O and the verdicts
//
// A machine that has lost a batch's hidden states, or never had them, makes them again from the tokens.
const gradientsPrefix = "gradients-"

const gradientsTokens = gradientsPrefix + "tokens"

var (
	// gradientPartBytes is how many bytes of sums are a part, linears that are added together: few, so that a few machines have about the
	// same to add. Tests take fewer.
	gradientPartBytes = int64(16 << 20)
	// gradientsTogether is how many batches' sums are in the work folder at a time. It decides no bytes. Tests take fewer.
	gradientsTogether = Shards
)

// gradientsJob is what a worker must know of the pass besides the checkpoint and the recipe.
type gradientsJob struct {
	jobSpec     // Sequences are those that gradients are taken of
	Batches int // that they are divided into evenly
}

// gradientsUnit is a unit of the pass. Of Layer, which is the number of layers for the head,
type gradientsUnit struct {
	Layer int
	Forth bool `json:",omitempty"` // batch First passes it forth; else it, or with Last a half,
	Back  bool `json:",omitempty"` // passes it back, and is summed; else
	Group int  `json:",omitempty"`
	Part  int  `json:",omitempty"` // of a group's sums is added over batches, all of them, if
	// Halves have been summed.
	Halves bool `json:",omitempty"`
	First  int  // the first batch, or the only one
	Last   int  `json:",omitempty"` // the one behind the last
}

// batches are those that the unit is about.
func (u *gradientsUnit) batches() (first, last int) {
	if u.Forth || u.Back && u.Last == 0 {
		return u.First, u.First + 1
	}
	return u.First, u.Last
}

func (u *gradientsUnit) name() string {
	switch {
	case u.Forth:
		return fmt.Sprintf("%sforth%04d-batch%05d", gradientsPrefix, u.Layer, u.First)
	case u.Back && u.Last > 0:
		return fmt.Sprintf("%s-half%05d", u.group(), u.First)
	case u.Back:
		return fmt.Sprintf("%s-batch%05d", u.group(), u.First)
	default:
		return u.before(u.Last)
	}
}

func (u *gradientsUnit) group() string {
	return fmt.Sprintf("%slayer%04d-group%02d", gradientsPrefix, u.Layer, u.Group)
}

// before is the name of a part's sums over all batches of a half before one, or of both.
func (u *gradientsUnit) before(batch int) string {
	return fmt.Sprintf("%s-part%04d-before%05d", u.group(), u.Part, batch)
}

// parts are the names of the values of what goes back, of so many parts: the unit's own is the last.
func (u *gradientsUnit) parts(n int) (names []string) {
	for part := range n - 1 {
		names = append(names, fmt.Sprintf("%s-part%04d", u.name(), part))
	}
	return append(names, u.name())
}

func (u *gradientsUnit) unit(size int64, key string) engine.Unit {
	spec, err := json.Marshal(u)
	if err != nil {
		panic(err) // numbers
	}
	return engine.Unit{Name: u.name(), Spec: spec, Size: size, Key: key}
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

// partBytes is the size of the sums over the outputs of a part's linears.
func (b *backwardPass) partBytes(part []*model.Linear) (bytes int64) {
	for _, lin := range part {
		bytes += outputBytes(lin.Out, b.m.Dim, lin.Expert >= 0)
	}
	return bytes
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
	job, err := engine.OfKind(jobGradients, &gradientsJob{*spec, b.of.batches()})
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
		if i < n {
			b.forthDone()
		}
	}
	for i := n - 1; i >= 0; i-- {
		b.opt.Progress.Item(fmt.Sprintf("gradients of layer %d/%d", i+1, n))
		if err := b.layerByUnits(p.kept, i); err != nil {
			return fmt.Errorf("gradients: layer %d: %w", i, err)
		}
		b.backDone()
	}
	return nil
}

// units returns a unit for each of the batches [first,last).
func (b *backwardPass) units(u gradientsUnit, first, last int) (units []engine.Unit) {
	halves := b.halvesTogether()
	for u.First = first; u.First < last; u.First++ {
		lo, hi := b.of.sequences(u.First)
		key := halfKey(b.of.halfOf(u.First))
		if !halves {
			key = fmt.Sprintf("%s/batch%05d", key, u.First)
		}
		units = append(units, u.unit(int64(hi-lo), key))
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
		if err := b.sumByUnits(k, u, parts); err != nil {
			return err
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

// sumByUnits has a group's sums over all batches made, and leaves nothing else of the group in the work folder, neither values of halves nor of
// batches, which were asked for before a machine came or went.
func (b *backwardPass) sumByUnits(k *keeper, u gradientsUnit, parts [][]*model.Linear) error {
	all := befores(u, b.of.batches(), len(parts))
	ok, err := k.allWhole(all)
	switch {
	case err != nil || ok:
	case b.halvesTogether():
		err = b.sumHalves(k, u, parts)
	default:
		err = b.sumBatches(k, u, parts)
	}
	if err != nil {
		return err
	}
	names, err := b.opt.Work.Names()
	if err != nil {
		return err
	}
	return b.opt.Work.Delete(slices.DeleteFunc(names, func(name string) bool {
		return !strings.HasPrefix(name, u.group()+"-") || slices.Contains(all, name)
	})...)
}

// befores are the names of all parts' sums over the batches before one.
func befores(u gradientsUnit, batch, parts int) (names []string) {
	for u.Part = range parts {
		names = append(names, u.before(batch))
	}
	return names
}

// sumHalves has the halves summed, and then added.
func (b *backwardPass) sumHalves(k *keeper, u gradientsUnit, parts [][]*model.Linear) error {
	u.Back = true
	var halves []engine.Unit
	for half := range b.of.halves() {
		u.First, u.Last = b.of.half(half)
		lo, _ := b.of.sequences(u.First)
		_, hi := b.of.sequences(u.Last - 1)
		halves = append(halves, u.unit(int64(hi-lo), halfKey(half)))
		if err := k.wholeOrUndone(u.parts(len(parts))); err != nil {
			return err
		}
	}
	if err := b.opt.Engine.Do(b.ctx, halves); err != nil {
		return err
	}
	u.Back, u.Halves, u.First, u.Last = false, true, 0, b.of.batches()
	return b.opt.Engine.Do(b.ctx, b.adding(u, parts))
}

// adding returns the units that add a group's sums over batches.
func (b *backwardPass) adding(u gradientsUnit, parts [][]*model.Linear) (units []engine.Unit) {
	for u.Part = range parts {
		units = append(units, u.unit(b.partBytes(parts[u.Part]), ""))
	}
	return units
}

// sumBatches has batches summed, a span of them after the other, and added to those before them.
func (b *backwardPass) sumBatches(k *keeper, u gradientsUnit, parts [][]*model.Linear) error {
	spans := b.of.spans()
	done, err := b.spansDone(k, u, spans, len(parts))
	if err != nil {
		return err
	}
	_, middle := b.of.half(0)
	for _, span := range spans[done:] {
		var passed []string // values that are not needed any more then
		if first := span.first; first > 0 && first != middle {
			passed = befores(u, first, len(parts))
		}
		back := u
		back.Back = true
		for back.First = span.first; back.First < span.last; back.First++ {
			names := back.parts(len(parts))
			passed = append(passed, names...)
			if err := k.wholeOrUndone(names); err != nil {
				return err
			}
		}
		if err := b.opt.Engine.Do(b.ctx, b.units(back, span.first, span.last)); err != nil {
			return err
		}
		add := u
		add.First, add.Last = span.first, span.last
		if err := b.opt.Engine.Do(b.ctx, b.adding(add, parts)); err != nil {
			return err
		}
		if err := b.opt.Work.Delete(passed...); err != nil {
			return err
		}
	}
	return nil
}

// spansDone returns how many spans a run need not do again: as far as sums over a half's batches are there, and those over the half before, as
// what was made on the way to them has gone.
func (b *backwardPass) spansDone(k *keeper, u gradientsUnit, spans []span, parts int) (int, error) {
	_, middle := b.of.half(0)
	for done := len(spans) - 1; done > 0; done-- {
		last := spans[done-1].last
		names := befores(u, last, parts)
		if last > middle {
			names = append(names, befores(u, middle, parts)...)
		}
		if ok, err := k.allWhole(names); err != nil || ok {
			return done, err
		}
	}
	return 0, nil
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
