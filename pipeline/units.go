package pipeline

import (
	"bufio"
	"encoding/gob"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// layersByUnits is layers with its work handed out by an engine: the same rows are written, in the same order.
func (p *passage) layersByUnits() error {
	if err := p.gradients(); err != nil {
		return err
	}
	k := p.kept
	spec, err := p.job()
	if err != nil {
		return err
	}
	job, err := engine.OfKind(jobLayers, spec)
	if err != nil {
		return err
	}
	if err := p.opt.Engine.Begin(p.ctx, job); err != nil {
		return err
	}
	text := textBatches(p.m, len(p.opt.Calib.Sequences), p.opt.Calib.SeqLen)
	d := &driver{passage: p, text: text}
	shards := shardPieces(text, 1)
	for i := 0; ; {
		if i, err = p.recall(i, func(i int) (bool, error) { return k.allWhole(k.pieceNames(i, shards)) }); err != nil {
			return err
		}
		if err := d.forgetBefore(i); err != nil {
			return err
		}
		if i == p.m.Layers() {
			break
		}
		if i == 0 {
			if err := d.embed(); err != nil {
				return err
			}
		}
		p.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, p.m.Layers()))
		if err := p.keepUnit(k.layerName(i), func() error { return d.layer(i) }); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		i++
		if err := d.forgetBefore(i); err != nil {
			return err
		}
		if err := k.note(store.PhaseLayers); err != nil {
			return err
		}
	}
	if !p.calibratesHead() {
		return nil
	}
	if err := p.keepHead(k.pieceNames(p.m.Layers(), shards), d.head); err != nil {
		return err
	}
	return d.forgetBefore(p.m.Layers() + 1)
}

// driver has the units of a passage done, and writes the rows that they put out.
type driver struct {
	*passage
	text   batching // the calibration text's
	stand  int      // the stage of the layer before which the hidden states of experts are kept; 0: there is none such
	halves bool     // the stage's statistics are two halves, which who needs them adds
}

// forgetBefore removes the values of units of layers before i.
func (d *driver) forgetBefore(i int) error {
	names, err := d.kept.work.Names()
	if err != nil {
		return err
	}
	return d.kept.work.Delete(slices.DeleteFunc(names, func(name string) bool {
		for j := range i {
			if strings.HasPrefix(name, d.kept.layerName(j)+"-") || strings.HasPrefix(name, d.kept.statesName(j)+"-") {
				return false
			}
		}
		return true
	})...)
}

// embed keeps the tokens of the calibration text: workers embed those of their shards by themselves, which is less work than to read
// what has been embedded.
func (d *driver) embed() error {
	name := d.kept.tokensName()
	if ok, err := d.kept.whole(name); err != nil || ok {
		return err
	}
	if err := d.m.CheckLength(d.opt.Calib.SeqLen); err != nil {
		return err
	}
	return keepValue(d.kept.work, name, d.opt.Calib.Sequences)
}

// each returns a unit for each shard, bundle or half of them. While halves or bundles can be dealt out evenly, a machine has whole ones.
func (d *driver) each(u unitSpec) []engine.Unit {
	var units []engine.Unit
	n := d.text.batches()
	shards := shardCount(n)
	for u.Shard = range u.count(n) {
		first, last := u.shards(n)
		lo, _ := shardBatches(first, n)
		_, hi := shardBatches(last-1, n)
		key := halfKey(halfOf(first, shards))
		if !d.halvesTogether() {
			key = fmt.Sprintf("%s/bundle%d", key, bundleOf(first, shards))
			if !d.bundlesTogether() {
				key = fmt.Sprintf("%s/shard%02d", key, first)
			}
		}
		units = append(units, u.unit(d.kept, int64(d.text.part(lo, hi).seqs()), key))
	}
	return units
}

// halvesTogether says whether the shards, or batches, of a half are kept on one machine, and bundlesTogether whether the shards of a bundle: where
// machines have the same number of them.
func (t *task) halvesTogether() bool  { return t.opt.Engine.Machines() <= shardHalves }
func (t *task) bundlesTogether() bool { return shardBundles%max(1, t.opt.Engine.Machines()) == 0 }

// halfKey is the key of a half's units.
func halfKey(half int) string { return fmt.Sprintf("half%d", half) }

func (d *driver) do(units []engine.Unit) error { return d.opt.Engine.Do(d.ctx, units) }

// sums has the inputs of a stage's site, or of all of its experts, observed, and summed if not by who needs the sums: in is how many features
// they have.
func (d *driver) sums(layer, stage, in int, pool bool) error {
	parts := statsParts(in)
	bundles := bundled(in) && d.bundlesTogether()
	d.halves = false
	var units []engine.Unit
	for part := range parts {
		u := unitSpec{Kind: unitSum, Layer: layer, Stage: stage, Pool: pool, Part: part, Bundle: bundles}
		units = append(units, u.unit(d.kept, 1, ""))
	}
	ok, err := d.kept.unitsWhole(units)
	if err != nil {
		return err
	}
	both := slices.Concat(halves(d.kept, layer, stage, parts, d.text.batches())...)
	if !ok && halved(in) {
		if d.halves, err = d.kept.allWhole(both); err != nil {
			return err
		}
		d.halves = d.halves || d.halvesTogether()
	}
	observe := unitSpec{Kind: unitObserve, Layer: layer, Stage: stage, Pool: pool, Half: d.halves, Bundle: bundles && !d.halves}
	if !ok {
		for observe.Shard = range observe.count(d.text.batches()) {
			if parts == 1 {
				break
			}
			if err := d.kept.wholeOrUndone(observe.observed(d.kept, parts)); err != nil {
				return err
			}
		}
		if err = d.do(d.each(observe)); err == nil && !d.halves {
			err = d.do(units)
		}
		if err != nil {
			return err
		}
	}
	// Values of these units, or of others that were asked for before a machine came or went.
	return d.forgetObserved(layer, stage, func(name string) bool { return d.halves && slices.Contains(both, name) })
}

// forgetObserved removes what observe units of a stage have put out, but what is needed.
func (d *driver) forgetObserved(layer, stage int, needed func(name string) bool) error {
	names, err := d.kept.work.Names()
	if err != nil {
		return err
	}
	of := fmt.Sprintf("%s-stage%02d-", d.kept.layerName(layer), stage)
	return d.kept.work.Delete(slices.DeleteFunc(names, func(name string) bool {
		form, ok := strings.CutPrefix(name, of)
		observed := strings.HasPrefix(form, "shard") || strings.HasPrefix(form, "bundle") || strings.HasPrefix(form, "half")
		return !ok || !observed || needed(name)
	})...)
}

// layer has one layer quantized, and the hidden states taken through it.
func (d *driver) layer(i int) error {
	l, err := d.m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	d.stand = 0
	for k := range l.Stages {
		if len(l.Stages[k].Sites) > 1 {
			err = d.experts(l, k)
		} else {
			err = d.site(l, k)
		}
		if err != nil {
			return err
		}
	}
	if d.changesVectors() {
		if err := d.out.vectors(l); err != nil {
			return err
		}
	}
	if !d.goesOn(i) {
		return nil
	}
	return d.do(d.each(unitSpec{Kind: unitAdvance, Layer: i, Stage: len(l.Stages)}))
}

// rowUnits returns the units that put out the rows of a stage: rows of its site's linears, in order, or experts, whose hidden
// states are kept before the stage stand. Of a linear that is quantized batch by batch, the batches had so many parts: their names do not tell.
func (d *driver) rowUnits(l *model.Layer, k, stand, parts int) (units []engine.Unit) {
	sites := l.Stages[k].Sites
	if len(sites) == 1 {
		for j, lin := range sites[0].Linears {
			first := 0
			blocks := d.found.outputs.blocks(lin.ID())
			if d.batched(sites[0], d.found.outputs) {
				blocks = nil
			}
			for _, n := range unitRows(lin.Out, blocks) {
				u := unitSpec{Kind: unitOfRows, Layer: l.Index, Stage: k, Linear: j, First: first, Last: first + n, Parts: parts, Half: d.halves}
				units = append(units, u.unit(d.kept, int64(n)*int64(lin.In), ""))
				first += n
			}
		}
		return units
	}
	for first := 0; first < len(sites); {
		last := first
		var bytes, size int64
		for ; last < min(len(sites), first+expertsTogether); last++ {
			if bytes += expertBytes(sites[last].In()); bytes > statsBytes && last > first {
				break
			}
			for _, lin := range sites[last].Linears {
				size += int64(lin.In) * int64(lin.Out)
			}
		}
		u := unitSpec{Kind: unitExperts, Layer: l.Index, Stage: k, Site: first, End: last, Stand: stand, Half: d.halves}
		units = append(units, u.unit(d.kept, size, ""))
		first = last
	}
	return units
}

// site has the linears of a stage with one site quantized, and writes them.
func (d *driver) site(l *model.Layer, k int) error {
	units := d.rowUnits(l, k, 0, 0)
	ok, err := d.kept.unitsWhole(units)
	if err != nil {
		return err
	}
	if !ok {
		if err := d.sums(l.Index, k, l.Stages[k].Width(), false); err != nil {
			return err
		}
		var parts int
		var batches []string
		if d.batched(l.Stages[k].Sites[0], d.found.outputs) {
			if parts, batches, err = d.byBatches(l, k); err != nil {
				return err
			}
		}
		units = d.rowUnits(l, k, 0, parts)
		if err := d.do(units); err != nil {
			return err
		}
		if err := d.kept.work.Delete(batches...); err != nil {
			return err
		}
	}
	if err := d.kept.work.Delete(summed(d.kept, l.Index, k, statsParts(l.Stages[k].Width()))...); err != nil {
		return err
	}
	if err := d.forgetObserved(l.Index, k, func(string) bool { return false }); err != nil {
		return err
	}
	return d.eachLinear(d.kept.work, l, k, units, func(t *Tensor, lin *model.Linear, q *rows) error {
		if err := d.out.rows(t, lin.First(), q); err != nil {
			return err
		}
		if q.shift != nil {
			shiftBias(l, lin, q.shift)
		}
		return nil
	})
}

// shiftBias adds shift, which it changes, to a linear's bias.
func shiftBias(l *model.Layer, lin *model.Linear, shift []float32) {
	if lin.Bias != nil {
		vector.Axpy(shift, 1, lin.Bias)
	}
	l.SetBias(lin, shift)
}

// experts has the linears of a stage with many sites quantized, and writes them.
func (d *driver) experts(l *model.Layer, k int) error {
	stage := &l.Stages[k]
	if stage.Begins && k > 0 {
		d.stand = k
	}
	units := d.rowUnits(l, k, d.stand, 0)
	ok, err := d.kept.unitsWhole(units)
	if err != nil {
		return err
	}
	if !ok {
		if !stage.Sites[0].Head {
			if err := d.sums(l.Index, k, stage.Width(), true); err != nil {
				return err
			}
		}
		if d.stand > 0 {
			if err := d.do(d.each(unitSpec{Kind: unitStand, Layer: l.Index, Stage: d.stand})); err != nil {
				return err
			}
		}
		units = d.rowUnits(l, k, d.stand, 0)
		if err := d.do(units); err != nil {
			return err
		}
	}
	return d.eachLinear(d.kept.work, l, k, units, func(t *Tensor, lin *model.Linear, q *rows) error {
		return d.out.rows(t, lin.First(), q)
	})
}

// head has the head quantized, and writes it.
func (d *driver) head() error {
	d.opt.Progress.Item("head")
	n := d.m.Layers()
	t := d.plan.Lookup(outputName)
	step := headRows(t.Cols())
	of := func() (units []engine.Unit) {
		for lo := 0; lo < t.Rows(); lo += step {
			u := unitSpec{Kind: unitOfRows, Layer: n, First: lo, Last: min(lo+step, t.Rows()), Half: d.halves}
			units = append(units, u.unit(d.kept, int64(u.Last-lo), ""))
		}
		return units
	}
	units := of()
	ok, err := d.kept.unitsWhole(units)
	if err != nil {
		return err
	}
	if !ok {
		if err := d.sums(n, 0, d.m.Dim, false); err != nil {
			return err
		}
		if err := d.do(of()); err != nil {
			return err
		}
	}
	for _, u := range units {
		err := readRows(d.kept.work, u.Name, d.plan, func(t *Tensor, first int, q *rows) error { return d.out.rows(t, first, q) })
		if err != nil {
			return err
		}
	}
	return nil
}

// rowsPlace is where the rows of a linear begin.
type rowsPlace struct {
	tensor string
	first  int
}

// linearsAt returns the linears of sites by where their rows begin.
func linearsAt(sites []*model.Site) map[rowsPlace]*model.Linear {
	linears := map[rowsPlace]*model.Linear{}
	for _, site := range sites {
		for _, lin := range site.Linears {
			linears[rowsPlace{lin.Name, lin.First()}] = lin
		}
	}
	return linears
}

// eachLinear calls do for every linear of a stage, in order, with what the stage's units have put out of it.
func (d *driver) eachLinear(values store.Store, l *model.Layer, k int, units []engine.Unit,
	do func(t *Tensor, lin *model.Linear, q *rows) error) error {
	linears := linearsAt(l.Stages[k].Sites)
	var lin *model.Linear // whose rows are being read
	var whole rows
	for _, u := range units {
		err := readRows(values, u.Name, d.plan, func(t *Tensor, first int, q *rows) error {
			if lin == nil {
				lin, whole = linears[rowsPlace{t.Name, first}], rows{}
			}
			row := t.Type.RowBytes(t.Cols())
			if lin == nil || lin.Name != t.Name || first != lin.First()+len(whole.data)/row {
				return fmt.Errorf("the work folder: %s: rows of %s from %d on are not those that come next", u.Name, t.Name, first)
			}
			whole.data = append(whole.data, q.data...)
			whole.shift = append(whole.shift, q.shift...)
			whole.add(&q.rowsReport)
			if len(whole.data) < lin.Out*row {
				return nil
			}
			of := lin
			lin = nil
			return do(t, of, &whole)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// blocks lists the rows of the blocks of a linear's H_O; nil if there are none.
func (o *outputs) blocks(id string) (rows []int) {
	if o != nil {
		for _, b := range o.at[id] {
			rows = append(rows, b.rows)
		}
	}
	return rows
}

// saveRows writes rows of a tensor from row first on, or nothing but the end behind the last ones.
func saveRows(enc *gob.Encoder, w io.Writer, tensor string, first int, q *rows) error {
	err := enc.Encode(&record{Tensor: tensor, First: first, Bytes: len(q.data), Report: q.rowsReport.kept(), Shift: q.shift})
	if err == nil {
		_, err = w.Write(q.data)
	}
	return err
}

// readRows calls do for the rows that a unit has put out.
func readRows(values store.Store, name string, p *Plan, do func(t *Tensor, first int, q *rows) error) error {
	f, err := values.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return eachRecord(f, name, p, func(t *Tensor, rec *record, data []byte) error { return do(t, rec.First, rec.rows(data)) }, nil)
}

// eachRecord reads a value of records: it calls do for each, with its rows, which are valid until do returns, or nil where they are in the
// output, and end with the last, if that is not nil.
func eachRecord(f io.Reader, name string, p *Plan, do func(t *Tensor, rec *record, data []byte) error, end func(n *notes)) error {
	r := bufio.NewReaderSize(f, 1<<16) // gob reads no further than it must from what can read single bytes
	dec := gob.NewDecoder(r)
	var data []byte
	for {
		var rec record
		if err := dec.Decode(&rec); err != nil {
			return fmt.Errorf("the work folder: %s: %w", name, err)
		}
		if rec.Tensor == "" {
			if end != nil {
				end(&rec.Notes)
			}
			return nil
		}
		t := p.Lookup(rec.Tensor)
		if t == nil || rec.Bytes < 0 || int64(rec.Bytes) > t.Bytes() {
			return fmt.Errorf("the work folder: %s: %d bytes of tensor %q, which is not in the plan like that", name, rec.Bytes, rec.Tensor)
		}
		if rec.SHA256 != nil {
			if err := do(t, &rec, nil); err != nil {
				return err
			}
			continue
		}
		data = slices.Grow(data[:0], rec.Bytes)[:rec.Bytes]
		if _, err := io.ReadFull(r, data); err != nil {
			return fmt.Errorf("the work folder: %s: %w", name, err)
		}
		if err := do(t, &rec, data); err != nil {
			return err
		}
	}
}
