package pipeline

import (
	"errors"
	"fmt"
	"io"

	"github.com/llmq/llmq/store"
)

// workedShard is the hidden states of a shard, in both models.
type workedShard struct {
	layer       int
	s, original *stream
	ended       bool // the original's are behind the layer already
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

// streams makes room for the hidden states of batches.
func (w *Worker) streams(batches batching, layer int, partial bool) (*workedShard, error) {
	s := &workedShard{}
	var err error
	if s.s, err = zeroStream(w.m, batches, w.job.SeqLen, true, w.budget, w.tempDir); err != nil {
		return nil, err
	}
	s.s.workspace, s.s.partial = w.own, partial
	if w.original() {
		if s.original, err = zeroStream(w.m, batches, w.job.SeqLen, false, w.budget, w.tempDir); err != nil {
			return nil, errors.Join(err, s.close(w.budget))
		}
		s.original.workspace, s.original.partial = w.originals, partial
	}
	if partial && layer < w.m.Layers() {
		if err := s.s.keepHidden(w.budget, w.tempDir); err != nil {
			return nil, errors.Join(err, s.close(w.budget))
		}
	}
	return s, nil
}

// shard returns the hidden states of a shard, at stage k of a layer or before it.
func (w *Worker) shard(shard, layer, k int) (*workedShard, error) {
	s := w.shards[shard]
	if s != nil && s.layer == layer && s.s.at <= k && (s.original == nil || s.original.at <= k && !s.ended) {
		return s, nil
	}
	if err := w.leave(shard); err != nil {
		return nil, err
	}
	n := w.text.batches()
	if shard < 0 || shard >= shardCount(n) {
		return nil, fmt.Errorf("the unit is of shard %d of %d", shard, shardCount(n))
	}
	lo, hi := shardBatches(shard, n)
	s, err := w.streams(w.text.part(lo, hi), layer, true)
	if err != nil {
		return nil, err
	}
	s.layer = layer
	w.shards[shard] = s
	if layer == 0 {
		err = w.embed(s)
	} else {
		err = loadStates(w.values, w.kept.shardName(layer, shard), s.s, s.original, 0, s.s.x.Len())
	}
	if err != nil {
		return nil, errors.Join(err, w.leave(shard))
	}
	return s, nil
}

// embed fills hidden states with the embeddings of the calibration text's sequences that they are of.
func (w *Worker) embed(s *workedShard) error {
	if w.tokens == nil {
		var err error
		if w.tokens, err = recallTokens(w.values, w.kept.tokensName(), w.job.Sequences); err != nil {
			return err
		}
	}
	of := s.s.batches
	seqs := w.tokens[of[0]:of[of.batches()]]
	if err := embed(w.m, s.s.x, seqs, w.job.SeqLen, w.roundEmbeddings()); err != nil || s.original == nil {
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
	return func(w io.Writer) error { return saveStates(w, s.s, s.original, 0, s.s.x.Len()) }, nil
}

// allAt returns the hidden states of all shards, where experts find them.
func (w *Worker) allAt(u *unitSpec) (*workedShard, error) {
	if s := w.all; s != nil && s.layer == u.Layer && s.s.at >= u.Stand && s.s.at <= u.Stage {
		return s, nil
	}
	if err := w.leaveAll(); err != nil {
		return nil, err
	}
	s, err := w.streams(w.text, u.Layer, false)
	if err != nil {
		return nil, err
	}
	w.all, s.layer = s, u.Layer
	if u.Layer == 0 && u.Stand == 0 {
		err = w.embed(s)
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
	for _, p := range shardPieces(s.s.batches, 1) {
		name := w.kept.pieceName(u.Layer, p)
		if u.Stand > 0 {
			stand := unitSpec{Kind: unitStand, Layer: u.Layer, Stage: u.Stand, Shard: p.shard}
			name = stand.name(w.kept)
		}
		if err := loadStates(w.values, name, s.s, s.original, p.lo, p.hi); err != nil {
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
	return func(w io.Writer) error { return saveStates(w, s.s, s.original, 0, s.s.x.Len()) }, nil
}
