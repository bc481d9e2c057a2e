package pipeline

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
)

// A run with a work folder keeps there, by name,
//
//	runN-converted the rows of what no calibration reaches, and runN-converted-head those of such a head; where weights come and go,
//	               runN-converted-headR those of it from row R on
//	runN-layerI    what layer I has put out: the rows that are written, found, scaled and seen
//	runN-statesI-shardS  the hidden states of both models before layer I, shard by shard (or runN-statesI-shardS-partP, parts of one); each
//	               takes the place of those before layer I-1
//	runN-head      the head's rows
//	runN-outcome   how attempt N ended, where another had to follow: then nothing else of it is left
//	outputs        the Hessians of outputs, as of which all attempts have the same
//	types          what Assign has measured; before it is complete, types-layerI and types-statesI are as above
//
// and goes on from there by doing everything again in its order, but for what has its output in the folder.
//
// Where the folder is on a disk and the output a GGUF file, attempt N makes that in the folder, runN-output.partial, and it takes its name
// in the end: values have the rows' digests then, not the rows, which are nowhere twice. Elsewhere they have the rows, and what no calibration
// reaches is converted again.

// keeper keeps the units of an attempt. A nil keeper keeps nothing.
type keeper struct {
	work   Work
	prefix string // of the names
	done   store.Standing
	noted  map[string]bool // what some unit's notes have
}

// newKeeper returns a keeper for an attempt of so many, or what is measured before the first.
func newKeeper(work Work, model, path string, r *Recipe, run int) *keeper {
	k := &keeper{work: work, prefix: typesPrefix, noted: map[string]bool{}}
	if run > 0 {
		k.prefix = fmt.Sprintf("run%d-", run)
	}
	k.done = store.Standing{Model: model, Output: path, Method: r.Method.Name(), Run: run, LayerSeconds: []float64{}}
	if r.Type != nil {
		k.done.Type = r.Type.Name
	}
	return k
}

func (k *keeper) layerName(i int) string { return fmt.Sprintf("%slayer%04d", k.prefix, i) }

// tokensName is the name of the tokens that the hidden states before the first layer are embedded from.
func (k *keeper) tokensName() string { return k.statesName(0) + "-tokens" }

func (k *keeper) headName() string    { return k.prefix + "head" }
func (k *keeper) outcomeName() string { return k.prefix + "outcome" }

// disk is a Work in which an output can be made: a *store.Dir.
type disk interface {
	Partial(name string) string
	RemovePartials(prefix string) error
	Discard(name string) error
}

// partial is where the attempt makes its file; "" if that is not kept.
func (k *keeper) partial() string {
	if k == nil {
		return ""
	}
	d, ok := k.work.(disk)
	if !ok {
		return ""
	}
	return d.Partial(k.prefix + "output")
}

// forget removes what the keeper has kept, but for one value.
func (k *keeper) forget(but string) error {
	names, err := k.work.Names()
	if err != nil {
		return err
	}
	return k.remove(slices.DeleteFunc(names, func(name string) bool {
		return name == but || !strings.HasPrefix(name, k.prefix)
	}), k.prefix)
}

// remove removes values, and partial outputs whose names begin with prefix.
func (k *keeper) remove(names []string, prefix string) error {
	err := k.work.Delete(names...)
	if d, ok := k.work.(disk); ok {
		err = errors.Join(err, d.RemovePartials(prefix))
	}
	return err
}

// whole says whether a value is there and as it was written.
func (k *keeper) whole(name string) (bool, error) {
	r, err := k.work.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// allWhole says so of all values.
func (k *keeper) allWhole(names []string) (bool, error) {
	for _, name := range names {
		if ok, err := k.whole(name); err != nil || !ok {
			return false, err
		}
	}
	return true, nil
}

// unitsWhole says so of the values of all units.
func (k *keeper) unitsWhole(units []engine.Unit) (bool, error) {
	names := make([]string, len(units))
	for i, u := range units {
		names[i] = u.Name
	}
	return k.allWhole(names)
}

// wholeOrUndone removes the last part of a unit's value where not all parts are whole: an engine looks for that one alone.
func (k *keeper) wholeOrUndone(parts []string) error {
	whole, err := k.allWhole(parts)
	if err == nil && !whole {
		err = k.work.Delete(parts[len(parts)-1])
	}
	return err
}

// end leaves nothing in the folder of a run that is over but how it went.
func (k *keeper) end() error {
	if k == nil {
		return nil
	}
	names, err := k.work.Names()
	if err == nil {
		err = k.remove(names, "")
	}
	return errors.Join(err, k.note(store.PhaseDone))
}

// recall goes on behind the layers from i on that are in the folder, if the hidden states behind them are there too, as
// recallStates finds out and takes, and returns the layer that is next.
func (p *passage) recall(i int, recallStates func(i int) (bool, error)) (next int, err error) {
	k := p.kept
	n := p.m.Layers()
	if k == nil || i == n {
		return i, nil
	}
	k.done.Layers, k.done.Head = n, p.calibratesHead()
	known := i // layers before it are whole
	for ; known < n; known++ {
		ok, err := p.out.unitWhole(k.layerName(known))
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
	}
	for next = known; next > i; next-- {
		ok := next == n && !p.calibratesHead()
		if next == n && !ok {
			if ok, err = p.out.unitWhole(k.headName()); err != nil {
				return 0, err
			}
		}
		if !ok {
			if ok, err = recallStates(next); err != nil {
				return 0, err
			}
		}
		if ok {
			break
		}
	}
	if next == i && i > 0 { // as it was noted when the layer before was done
		return i, nil
	}
	for ; i < next; i++ {
		p.opt.Progress.Item(fmt.Sprintf("layer %d/%d, done before", i+1, n))
		if err := p.out.recall(k.layerName(i), p.note); err != nil {
			return 0, err
		}
	}
	return next, k.note(store.PhaseLayers)
}

// goesOn says whether anything comes after layer i.
func (p *passage) goesOn(i int) bool { return i+1 < p.m.Layers() || p.calibratesHead() }

// keep has layer i done, and keeps what comes of it.
func (p *passage) keep(s, original *stream, i int, do func() error) error {
	k := p.kept
	if k == nil {
		return do()
	}
	if err := p.keepUnit(k.layerName(i), do); err != nil {
		return err
	}
	if p.goesOn(i) {
		if err := k.replaceStates(p.textPieces(s.batches), s, original, i+1, p.advances()); err != nil {
			return err
		}
	} else if err := k.work.Delete(k.pieceNames(i, p.textPieces(s.batches))...); err != nil {
		return err
	}
	return k.note(store.PhaseLayers)
}

// keepHead has the head done, or takes it from the folder. states are the names of the hidden states before it.
func (p *passage) keepHead(states []string, do func() error) error {
	k := p.kept
	if k == nil {
		return do()
	}
	ok, err := p.out.unitWhole(k.headName())
	if err != nil {
		return err
	}
	if ok {
		err = p.out.recall(k.headName(), p.note)
	} else if err = k.note(store.PhaseHead); err == nil {
		err = p.keepUnit(k.headName(), do)
	}
	if err != nil {
		return err
	}
	return k.work.Delete(states...)
}

// keptOutcome is a redo: which linears get Q8_0, in order.
type keptOutcome struct {
	Linears   []keptPromotion
	Fallbacks []FallbackReport
	Findings  keptFindings
}

type keptPromotion struct {
	Linear   string
	Outliers []uint32
}

// attemptOnce is attempt, but for one that the work folder knows to have ended with another plan.
func (t *task) attemptOnce(path string, found *findings) (outcome, []FallbackReport, error) {
	if t.kept == nil {
		return t.attempt(path, found)
	}
	k := t.kept
	var kept keptOutcome
	ok, err := recallValue(k.work, k.outcomeName(), &kept)
	if err != nil {
		return nil, nil, err
	}
	if ok {
		next := t.plan
		for _, l := range kept.Linears {
			if next, err = next.withQ8(l.Linear, l.Outliers); err != nil {
				return nil, nil, err
			}
		}
		outputs := found.outputs
		*found = *newFindings()
		found.outputs = outputs
		f := &kept.Findings
		found.add(f, &t.plan.Recipe)
		found.validation, found.runs, found.int8 = f.Validation, f.Runs, f.Int8
		if f.Measured {
			found.kl = map[string]float64{}
			maps.Copy(found.kl, f.KL)
		}
		return redo{next}, kept.Fallbacks, k.forget(k.outcomeName()) // a killed process may not have come to that
	}
	o, fallbacks, err := t.attempt(path, found)
	r, again := o.(redo)
	if err != nil || !again {
		return o, fallbacks, err
	}
	kept = keptOutcome{Fallbacks: fallbacks, Findings: found.kept(0, map[string]bool{})}
	f := &kept.Findings
	f.KL, f.Measured, f.Validation, f.Runs, f.Int8 = found.kl, found.kl != nil, found.validation, found.runs, found.int8
	for _, f := range fallbacks {
		if !f.Done {
			continue
		}
		l := keptPromotion{Linear: f.Name}
		if v, ok := r.plan.Metadata.Get(model.OutliersPrefix + f.Name); ok {
			l.Outliers = v.([]uint32)
		}
		kept.Linears = append(kept.Linears, l)
	}
	if err := keepValue(k.work, k.outcomeName(), &kept); err != nil {
		return nil, nil, err
	}
	return o, fallbacks, k.forget(k.outcomeName()) // what the attempt has written is of no use any more
}

// keepValue keeps a value that gob can encode.
func keepValue(work Work, name string, v any) error {
	w, err := work.Create(name)
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	if err := gob.NewEncoder(w).Encode(v); err != nil {
		return err
	}
	return w.Commit()
}

// recallValue reads what keepValue kept into v, which is zero before, and says whether there was something.
func recallValue(work store.Store, name string, v any) (bool, error) {
	r, err := work.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer r.Close()
	if err := gob.NewDecoder(r).Decode(v); err != nil {
		return false, fmt.Errorf("the work folder: %s: %w", name, err)
	}
	return true, nil
}

// record is what a unit's value is made of: rows of a tensor, whose bytes follow or are in the output, and at the end what else there is to
// tell.
type record struct {
	Tensor string // "" at the end
	First  int    // row
	Bytes  int
	SHA256 []byte // of bytes that are in the output; nil of those that follow
	Report keptReport
	Shift  []float32 // of rows
	Notes  notes
}

// rows are the record's, whose bytes are data.
func (r *record) rows(data []byte) *rows {
	return &rows{data: data, shift: r.Shift, rowsReport: r.Report.rowsReport()}
}

// keptReport is a rowsReport.
type keptReport struct {
	Outputs, Rounding, Weights [2]float64 // errorSum
	Noise, Damping             float64
	Tokens                     []int
	Exact                      int
}

func (s *rowsReport) kept() keptReport {
	pair := func(e errorSum) [2]float64 { return [2]float64{e.num, e.den} }
	return keptReport{pair(s.outputs), pair(s.rounding), pair(s.weights), s.noise, s.damping, s.tokens, s.exact}
}

func (r *keptReport) rowsReport() rowsReport {
	sum := func(p [2]float64) errorSum { return errorSum{p[0], p[1]} }
	return rowsReport{sum(r.Outputs), sum(r.Rounding), sum(r.Weights), r.Noise, r.Damping, r.Tokens, r.Exact}
}

// notes are what a layer adds to what is found, scaled and seen.
type notes struct {
	Seconds  float64
	Foldings []quant.Folding
	Ranges   []GroupRanges
	Findings keptFindings
	Sites    map[string]string // of observer
	AbsMax   map[string]float32
	Outliers map[string]int8outlier.Counts // of its features, by site
	Shares   map[string]string
}

// keptFindings are findings: ways by their names.
type keptFindings struct {
	Decisions []Decision
	Ways      map[string]string // by group
	Linears   map[string]string // by linear
	Plain     map[string]keptRounding
	// What attempts with a limit have found; a layer's notes leave it out.
	KL         map[string]float64
	Measured   bool // KL is: gob does not tell an empty map from nil
	Validation *Validation
	Runs       []ValidatedRun
	Int8       int
}

// keptRounding is a plainRounding.
type keptRounding struct {
	Importance []float32
	Err        float64
}

// unitWriter keeps what a unit writes. A nil unitWriter keeps nothing.
type unitWriter struct {
	mu  sync.Mutex // guards what follows
	w   store.Writer
	enc *gob.Encoder

	written bool // rows are in the output, and stay there
}

// rows keeps rows of a tensor.
func (u *unitWriter) rows(tensor string, first int, q *rows) error {
	if u == nil {
		return nil
	}
	rec := record{Tensor: tensor, First: first, Bytes: len(q.data), Report: q.rowsReport.kept(), Shift: q.shift}
	if u.written {
		sum := sha256.Sum256(q.data)
		rec.SHA256 = sum[:]
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	err := u.enc.Encode(&rec)
	if err == nil && !u.written {
		_, err = u.w.Write(q.data)
	}
	return err
}

// keep has a unit done, and keeps its rows and the notes that do returns.
func (w *writer) keep(name string, do func() (notes, error)) error {
	value, err := w.kept.work.Create(name)
	if err != nil {
		return err
	}
	defer value.Abort() // no effect after Commit
	defer func(around *unitWriter) { w.unit = around }(w.unit)
	w.unit = &unitWriter{w: value, enc: gob.NewEncoder(value), written: w.partial != nil}
	n, err := do()
	if err != nil {
		return err
	}
	if err := w.unit.enc.Encode(&record{Notes: n}); err != nil {
		return err
	}
	if w.partial != nil { // before the value that tells of it
		if err := w.partial.Sync(); err != nil {
			return err
		}
	}
	return value.Commit()
}

// keepUnit has a unit done, and keeps its rows and notes.
func (p *passage) keepUnit(name string, do func() error) error {
	start := time.Now()
	foldings, ranges, decisions := len(p.scaled.foldings), len(p.scaled.ranges), len(p.found.decisions)
	var n notes
	err := p.out.keep(name, func() (notes, error) {
		if err := do(); err != nil {
			return n, err
		}
		n = notes{
			Seconds: time.Since(start).Seconds(), Foldings: p.scaled.foldings[foldings:], Ranges: p.scaled.ranges[ranges:],
			Findings: p.found.kept(decisions, p.kept.noted),
		}
		if p.seen != nil {
			n.observed(p.seen, p.kept.noted)
		}
		return n, nil
	})
	if err == nil {
		p.kept.done.LayerSeconds = append(p.kept.done.LayerSeconds, n.Seconds)
	}
	return err
}

// unitWhole says whether a unit's value is there, and in the output the rows that it tells of.
func (w *writer) unitWhole(name string) (bool, error) {
	f, err := w.kept.work.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if w.partial == nil {
		return true, nil
	}
	errOther := errors.New("other rows")
	var data []byte
	err = eachRecord(f, name, w.plan, func(t *Tensor, rec *record, follows []byte) error {
		if rec.SHA256 == nil {
			return nil
		}
		data = slices.Grow(data[:0], rec.Bytes)[:rec.Bytes]
		if err := w.partial.ReadRows(t.Name, rec.First, data); err != nil {
			return err
		}
		if sum := sha256.Sum256(data); !bytes.Equal(sum[:], rec.SHA256) {
			return errOther
		}
		return nil
	}, nil)
	if err == errOther {
		return false, w.kept.work.(disk).Discard(name) // as there is a partial output
	}
	return err == nil, err
}

// recall writes the rows of a unit that is whole, unless they are there, and calls end with what it has noted, if that is not nil.
func (w *writer) recall(name string, end func(n *notes)) error {
	f, err := w.kept.work.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w.recalls = true
	defer func() { w.recalls = false }()
	return eachRecord(f, name, w.plan, func(t *Tensor, rec *record, data []byte) error {
		q := rec.rows(data)
		if rec.SHA256 == nil {
			return w.rows(t, rec.First, q)
		}
		n := rec.Bytes / t.Type.RowBytes(t.Cols())
		if err := w.partial.HaveRows(t.Name, rec.First, n); err != nil {
			return err
		}
		w.wrote(t, rec.First, n, &q.rowsReport)
		return nil
	}, end)
}

// note adds a recalled unit's notes to what is found, scaled and seen.
func (p *passage) note(n *notes) {
	p.kept.done.LayerSeconds = append(p.kept.done.LayerSeconds, n.Seconds)
	p.scaled.foldings = append(p.scaled.foldings, n.Foldings...)
	p.scaled.ranges = append(p.scaled.ranges, n.Ranges...)
	p.found.add(&n.Findings, &p.plan.Recipe)
	if p.seen != nil {
		maps.Copy(p.seen.sites, n.Sites)
		maps.Copy(p.seen.absmax, n.AbsMax)
		for _, site := range slices.Sorted(maps.Keys(n.Outliers)) {
			p.seen.features.Restore(site, n.Shares[site], n.Outliers[site])
		}
	}
	noted := p.kept.noted
	for linear := range n.Sites {
		noted[seenKey+linear] = true
	}
	for group := range n.Findings.Ways {
		noted[wayKey+group] = true
	}
	for linear := range n.Findings.Linears {
		noted[methodKey+linear] = true
	}
	for linear := range n.Findings.Plain {
		noted[plainKey+linear] = true
	}
}

// Prefixes of keeper.noted's keys.
const (
	seenKey   = "seen "
	wayKey    = "way "
	methodKey = "method "
	plainKey  = "plain "
)

// observed takes what was seen of sites that no earlier notes have.
func (n *notes) observed(o *observer, noted map[string]bool) {
	n.Sites, n.AbsMax = map[string]string{}, map[string]float32{}
	n.Outliers, n.Shares = map[string]int8outlier.Counts{}, map[string]string{}
	for linear, site := range o.sites {
		key := seenKey + linear
		if noted[key] {
			continue
		}
		noted[key] = true
		n.Sites[linear], n.AbsMax[site] = site, o.absmax[site]
		n.Shares[site], n.Outliers[site] = o.features.Counts(site)
	}
}

// kept takes what was found since there were so many decisions, and the ways and roundings that no earlier notes have.
func (f *findings) kept(decisions int, noted map[string]bool) keptFindings {
	k := keptFindings{Decisions: f.decisions[decisions:], Ways: map[string]string{}, Linears: map[string]string{}, Plain: map[string]keptRounding{}}
	fresh := func(key string) bool {
		old := noted[key]
		noted[key] = true
		return !old
	}
	for group, way := range f.ways {
		if fresh(wayKey + group) {
			k.Ways[group] = way.name
		}
	}
	for linear := range f.methods {
		if fresh(methodKey + linear) {
			k.Linears[linear] = f.chosen[linear]
		}
	}
	for linear, b := range f.plain {
		if fresh(plainKey + linear) {
			k.Plain[linear] = keptRounding{b.importance, b.err}
		}
	}
	return k
}

// add is the inverse of kept.
func (f *findings) add(k *keptFindings, r *Recipe) {
	for _, d := range k.Decisions {
		d.Candidates = append([]Candidate{}, d.Candidates...) // JSON has an empty list, never null
		f.decisions = append(f.decisions, d)
	}
	ways := map[string]way{}
	for _, w := range r.ways() {
		ways[w.name] = w
	}
	for group, name := range k.Ways {
		f.ways[group] = ways[name]
	}
	for linear, name := range k.Linears {
		f.methods[linear], f.chosen[linear] = ways[name].method, name
	}
	for linear, b := range k.Plain {
		f.plain[linear] = &plainRounding{b.Importance, b.Err}
	}
}
