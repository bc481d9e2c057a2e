package pipeline

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
)

// Hidden states before a layer take the place of those before the layer before piece by piece, once that layer's rows are kept: so a folder
// has little more than one set of them. Of a run that is killed amid that, those that are missing are made again: the old ones are taken
// through the layer as its rows are kept, and as the original has it, whose weights are not given up before. That is what a unit of work does
// (Worker.advance), in batches of the same sequences, and gives the same bytes. A layer that a transform has scaled cannot be made again of
// its rows: the originals' stream is of scaled weights too. Such a run keeps all of the new hidden states before it removes the old.

func (k *keeper) statesName(i int) string { return fmt.Sprintf("%sstates%04d", k.prefix, i) }

// shardName is the name of a shard's states before layer i.
func (k *keeper) shardName(i, shard int) string {
	return fmt.Sprintf("%s-shard%02d", k.statesName(i), shard)
}

// piece is some sequences whose hidden states are kept together.
type piece struct {
	shard, part int // part < 0: all of the shard
	lo, hi      int // sequences
}

func (k *keeper) pieceName(i int, p piece) string {
	if p.part < 0 {
		return k.shardName(i, p.shard)
	}
	return fmt.Sprintf("%s-part%02d", k.shardName(i, p.shard), p.part)
}

func (k *keeper) pieceNames(i int, pieces []piece) (names []string) {
	for _, p := range pieces {
		names = append(names, k.pieceName(i, p))
	}
	return names
}

// shardPieces are the shards of a text, each divided into so many parts, at most.
func shardPieces(text batching, parts int) (pieces []piece) {
	for shard := range shardCount(text.batches()) {
		first, last := shardBatches(shard, text.batches())
		lo, hi := text[first], text[last]
		n := min(parts, hi-lo)
		if n == 1 {
			pieces = append(pieces, piece{shard, -1, lo, hi})
			continue
		}
		for part := range n {
			pieces = append(pieces, piece{shard, part, lo + part*(hi-lo)/n, lo + (part+1)*(hi-lo)/n})
		}
	}
	return pieces
}

// textPieces are the pieces of the calibration text: shards, which units of work have too. Where weights come and go, few
// large shards are divided: there is as little room as that. But not before experts: their products depend on how many tokens of a batch
// reach one, and where some of the batch have been taken through the layer already, the others reach it alone.
func (t *task) textPieces(text batching) []piece {
	parts := 1
	if shards := shardCount(text.batches()); model.PassingOf(t.m.Source) != nil && !mixes(t.m) {
		parts = (Shards + shards - 1) / shards
	}
	return shardPieces(text, parts)
}

// mixes says whether tokens choose among experts.
func mixes(m *model.Model) bool {
	for i := range m.Layers() {
		if slices.ContainsFunc(m.Shape(i), func(s model.SiteShape) bool { return s.Expert >= 0 && !s.Head }) {
			return true
		}
	}
	return false
}

// advances says whether hidden states can be taken through a layer whose rows are kept: see above.
func (t *task) advances() bool { return t.plan.Recipe.Divisible() == nil }

// replaceStates keeps the hidden states of both models before layer i, and removes those before the layer before: piece by piece, or all
// behind the last.
func (k *keeper) replaceStates(pieces []piece, s, original *stream, i int, each bool) error {
	for _, p := range pieces {
		err := k.keepShard(k.pieceName(i, p), func(w io.Writer) error { return saveStates(w, s, original, p.lo, p.hi) })
		if err == nil && each {
			err = k.work.Delete(k.pieceName(i-1, p))
		}
		if err != nil {
			return err
		}
	}
	if each {
		return nil
	}
	return k.work.Delete(k.pieceNames(i-1, pieces)...)
}

func (k *keeper) keepShard(name string, save func(w io.Writer) error) error {
	w, err := k.work.Create(name)
	if err != nil {
		return err
	}
	defer w.Abort() // no effect after Commit
	if err := save(w); err != nil {
		return err
	}
	return w.Commit()
}

// saveStates writes sequences [lo,hi) of both models' hidden states, the original's where it is not nil.
func saveStates(w io.Writer, s, original *stream, lo, hi int) error {
	err := s.x.SaveSequences(w, lo, hi)
	if err == nil && original != nil {
		err = original.x.SaveSequences(w, lo, hi)
	}
	return err
}

// loadStates reads what saveStates has written.
func loadStates(values store.Store, name string, s, original *stream, lo, hi int) error {
	r, err := values.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	err = s.x.LoadSequences(r, lo, hi)
	if err == nil && original != nil {
		err = original.x.LoadSequences(r, lo, hi)
	}
	if err != nil {
		return fmt.Errorf("the work folder: %s: %w", name, err)
	}
	return nil
}

// loadPieces reads the hidden states before layer i of pieces.
func (k *keeper) loadPieces(pieces []piece, s, original *stream, i int) error {
	for _, p := range pieces {
		if err := loadStates(k.work, k.pieceName(i, p), s, original, p.lo, p.hi); err != nil {
			return err
		}
	}
	return nil
}

// recallStates takes the hidden states before layer i from the folder, and says whether they are there.
func (k *keeper) recallStates(pieces []piece, s, original *stream, i int) (bool, error) {
	if ok, err := k.allWhole(k.pieceNames(i, pieces)); err != nil || !ok {
		return false, err
	}
	return true, k.loadPieces(pieces, s, original, i)
}

// recallStates is keeper.recallStates, but for pieces that are missing and are made again of those before the layer before, whose rows are
// whole. The folder has those before layer i alone then.
func (p *passage) recallStates(s, original *stream, i int) (bool, error) {
	k := p.kept
	all := p.textPieces(s.batches)
	var there, missing []piece
	for _, piece := range all {
		ok, err := k.whole(k.pieceName(i, piece))
		switch {
		case err != nil:
			return false, err
		case ok:
			there = append(there, piece)
		default:
			missing = append(missing, piece)
		}
	}
	if len(missing) > 0 {
		if !p.advances() {
			return false, nil
		}
		if i > 1 { // there are the embeddings otherwise
			if ok, err := k.allWhole(k.pieceNames(i-1, missing)); err != nil || !ok {
				return false, err
			}
		}
	}
	if err := errors.Join(k.loadPieces(there, s, original, i), k.work.Delete(k.pieceNames(i-1, there)...)); err != nil {
		return false, err
	}
	if len(missing) > 0 {
		if err := p.advanceMissing(there, missing, s, original, i); err != nil {
			return false, fmt.Errorf("layer %d: %w", i-1, err)
		}
	}
	return true, k.replaceStates(missing, s, original, i, true)
}

// advanceMissing makes the missing hidden states before layer i. The streams have those that are there, in the place of which the sequences of
// a batch that are missing find nothing else in it that they could depend on.
func (p *passage) advanceMissing(there, missing []piece, s, original *stream, i int) error {
	var err error
	if i > 1 {
		err = p.kept.loadPieces(missing, s, original, i-1)
	} else {
		err = p.embed(s, original)
	}
	if err != nil {
		return err
	}
	l, err := p.m.LoadLayer(i - 1)
	if err != nil {
		return err
	}
	defer l.Release()
	var ol *model.Layer
	if original != nil {
		if ol, err = p.m.LoadAgain(l); err != nil {
			return err
		}
		defer ol.Release()
	}
	if err := p.install(l, p.kept.layerName(i-1)); err != nil {
		return err
	}
	if err := errors.Join(s.advance(p.ctx, l), l.Err()); err != nil {
		return err
	}
	s.rest()
	if original != nil {
		if err := errors.Join(original.advance(p.ctx, ol), ol.Err()); err != nil {
			return err
		}
		original.rest()
	}
	return p.kept.loadPieces(there, s, original, i)
}

// install gives the linears of a layer the rows that its unit has put out.
func (p *passage) install(l *model.Layer, unit string) error {
	linears := linearsAt(l.Sites())
	f, err := p.kept.work.Open(unit)
	if err != nil {
		return err
	}
	defer f.Close()
	err = eachRecord(f, unit, p.plan, func(t *Tensor, rec *record, data []byte) error {
		at := rowsPlace{rec.Tensor, rec.First}
		lin := linears[at]
		if lin == nil {
			return nil // a vector
		}
		delete(linears, at)
		if rec.Bytes != lin.Out*t.Type.RowBytes(lin.In) {
			return fmt.Errorf("the work folder: %s: %d bytes of %s from row %d on are not all of its rows", unit, rec.Bytes, rec.Tensor, rec.First)
		}
		data = slices.Clone(data)
		if rec.SHA256 != nil {
			data = make([]byte, rec.Bytes)
			if err := p.out.partial.ReadRows(t.Name, rec.First, data); err != nil {
				return err
			}
		}
		takeRows(l, lin, t, data, rec.Shift)
		return nil
	}, nil)
	for at := range linears {
		return errors.Join(err, fmt.Errorf("the work folder: %s: has no rows of %s from %d on", unit, at.tensor, at.first))
	}
	return err
}

// takeRows gives a linear its quantized rows, and its bias what corrects it, which is changed.
func takeRows(l *model.Layer, lin *model.Linear, t *Tensor, data []byte, shift []float32) {
	lin.F32 = nil
	lin.W = kernels.Weights{Rows: lin.Out, Cols: lin.In, Format: &t.Type.Format, Data: data}
	if shift != nil {
		shiftBias(l, lin, shift)
	}
}
