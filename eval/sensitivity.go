package eval

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// Replacement puts other weights in the place of one linear's, or of the embedding's or the head's.
type Replacement struct {
	// Linear is the weight's name: "blk.0.attn_q.weight", Embedding or Head.
	Linear string
	// Weights returns what replaces w, out×in, which it may overwrite. The embedding and the head come in parts: w has
	// some of their rows, of the embedding those of a batch of tokens.
	Weights func(w *tensor.Matrix) (*tensor.Matrix, error)
}

// Where the embedding and the head are one tensor, Embedding replaces what tokens are read as, Head what computes logits.
const (
	Embedding = model.EmbedName
	Head      = model.HeadName
)

// Effect is how far a model's predictions are from those with one linear replaced.
type Effect struct {
	KL     float64 // mean of KL(original‖replaced) over the scored tokens, in nats
	StdErr float64
}

// Sensitivity measures the effect of each replacement alone. All variants of the model go through a layer together, each
// from the replaced layer on, so that the layers' weights are read once; of opt, Base, Activations and Outliers are not
// used.
func Sensitivity(ctx context.Context, m *model.Model, tokens []int32, rs []Replacement, opt Options) ([]Effect, error) {
	opt.Base = nil
	p, err := newPlan(m, tokens, opt)
	if err != nil {
		return nil, err
	}
	if p.memory > 0 {
		p.memory = max(p.memory/int64(len(rs)+1), 1)
	}
	s := &sensitivity{plan: p, original: newRun(m), replaced: make([]*run, len(rs))}
	defer s.close()
	if err := s.original.embed(p); err != nil {
		return nil, err
	}
	at := make([]int, len(rs))          // layers
	work := make([]int64, m.Layers()+1) // of the layers from i on
	for i := m.Layers() - 1; i >= 0; i-- {
		work[i] = work[i+1] + p.layerWork(m, i)
	}
	total := work[0]
	for i, r := range rs {
		if at[i], err = layerOf(m, r.Linear); err != nil {
			return nil, err
		}
		total += work[max(at[i], 0)]
		if at[i] < 0 {
			if err := s.embed(i, r); err != nil {
				return nil, err
			}
		}
	}
	p.progress.Stage("sensitivity", int64(p.chunks)*(total+int64(len(rs)+1)*p.headWork(m)))
	defer p.progress.Done()
	for i := range m.Layers() {
		p.progress.Item(fmt.Sprintf("layer %d/%d", i+1, m.Layers()))
		if err := s.layer(ctx, i, rs, at); err != nil {
			return nil, err
		}
	}
	p.progress.Item("head")
	return s.score(ctx, rs)
}

// layerOf returns the layer that a linear is in: −1 for the embedding, the number of layers for the head.
func layerOf(m *model.Model, name string) (int, error) {
	switch name {
	case Embedding:
		return -1, nil
	case Head:
		return m.Layers(), nil
	}
	if i := m.LayerOf(name); i >= 0 {
		return i, nil
	}
	return 0, fmt.Errorf("eval: %s: no layer has a linear %q", m.Source.Name(), name)
}

// find lists the linears of a tensor: one, or those of all experts.
func find(l *model.Layer, name string) []*model.Linear {
	var found []*model.Linear
	for _, lin := range l.Linears() {
		if lin.Name == name {
			found = append(found, lin)
		}
	}
	return found
}

type sensitivity struct {
	plan     *plan
	original *run
	replaced []*run // nil before the layer of its linear, and for the head
}

func (s *sensitivity) close() {
	s.original.close()
	for _, r := range s.replaced {
		if r != nil {
			r.close()
		}
	}
}

// embed begins variant k with other embeddings.
func (s *sensitivity) embed(k int, r Replacement) error {
	p, m := s.plan, s.original.m
	s.replaced[k] = &run{m: m, states: s.original.states}
	return s.replaced[k].embedWith(p, func(table string, x *tensor.Matrix) error {
		if table != Embedding {
			return nil
		}
		w, err := r.Weights(x.Clone())
		if err != nil {
			return fmt.Errorf("eval: %s: %w", r.Linear, err)
		}
		for t := range x.Rows {
			copy(x.Row(t), w.Row(t))
		}
		return nil
	})
}

// layer takes all variants through layer i.
func (s *sensitivity) layer(ctx context.Context, i int, rs []Replacement, at []int) error {
	p, m := s.plan, s.original.m
	l, err := m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	forward := func(r *run) error {
		return r.forward(ctx, l, p.context, p.context, p.progress)
	}
	for k, r := range rs {
		switch {
		case at[k] > i:
			continue
		case at[k] < i:
			if err := forward(s.replaced[k]); err != nil {
				return err
			}
			continue
		}
		if err := s.branch(k); err != nil {
			return err
		}
		linears := find(l, r.Linear)
		before := make([]*tensor.Matrix, len(linears))
		for j, lin := range linears {
			w, err := lin.Matrix()
			if err != nil {
				return fmt.Errorf("eval: %s: %w", m.Source.Name(), err)
			}
			before[j] = lin.F32
			if lin.F32, err = r.Weights(w); err != nil {
				return fmt.Errorf("eval: %s: %w", r.Linear, err)
			}
		}
		err = forward(s.replaced[k])
		for j, lin := range linears {
			lin.F32 = before[j]
		}
		if err != nil {
			return err
		}
	}
	return forward(s.original)
}

// branch begins variant k with the original's hidden states.
func (s *sensitivity) branch(k int) error {
	p, m := s.plan, s.original.m
	hidden, err := states.New(states.Fixed(p.chunks, p.together()), p.context, m.Width, p.memory, p.tempDir) // batches are the original's
	if err != nil {
		return fmt.Errorf("eval: %w", err)
	}
	r := &run{m: m, states: s.original.states, hidden: hidden}
	s.replaced[k] = r
	batch := 0
	return r.each(func(_, _ int, x *tensor.Matrix) error {
		from, err := s.original.hidden.Get(batch)
		if err != nil {
			return fmt.Errorf("eval: %w", err)
		}
		batch++
		for t := range x.Rows {
			copy(x.Row(t), from.Row(t))
		}
		return nil
	})
}

// score puts all hidden states through the head and compares the predictions.
func (s *sensitivity) score(ctx context.Context, rs []Replacement) ([]Effect, error) {
	p, m := s.plan, s.original.m
	head, err := m.LoadHead()
	if err != nil {
		return nil, err
	}
	defer head.Release()
	kl := make([][]float64, len(rs))
	for k := range kl {
		kl[k] = make([]float64, p.chunks*p.scored())
	}
	// A chunk at a time, in pieces: so the pieces do not depend on the batches.
	step := min(max(headValues/m.Vocab, 1), p.scored())
	want, got := tensor.New(step, m.Vocab), tensor.New(step, m.Vocab)
	lse := make([]float64, step)
	for b := range s.original.hidden.Batches() {
		x, err := s.original.hidden.Get(b)
		if err != nil {
			return nil, fmt.Errorf("eval: %w", err)
		}
		lo, hi := s.original.hidden.Sequences(b)
		for c := lo; c < hi; c++ {
			for t := 0; t < p.scored(); t += step {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				n := min(step, p.scored()-t)
				row := (c-lo)*p.context + p.first + t
				head.Logits(want.View(0, n, 0, m.Vocab), x.View(row, row+n, 0, m.Width))
				kernels.Parallel(n, 1, func(from, to int) {
					for j := from; j < to; j++ {
						lse[j] = elementwise.LogSumExp(want.Row(j))
					}
				})
				for k, r := range s.replaced {
					if r == nil {
						err = otherHead(got.View(0, n, 0, m.Vocab), head, x.View(row, row+n, 0, m.Width), rs[k])
					} else {
						var y *tensor.Matrix
						if y, err = r.hidden.Get(b); err == nil {
							head.Logits(got.View(0, n, 0, m.Vocab), y.View(row, row+n, 0, m.Width))
						}
					}
					if err != nil {
						return nil, fmt.Errorf("eval: %w", err)
					}
					kernels.Parallel(n, 1, func(from, to int) {
						for j := from; j < to; j++ {
							kl[k][c*p.scored()+t+j] = divergence(want.Row(j), got.Row(j), lse[j], elementwise.LogSumExp(got.Row(j)))
						}
					})
				}
			}
			p.progress.Add(int64(len(rs)+1) * p.headWork(m))
		}
	}
	effects := make([]Effect, len(rs))
	for k := range effects {
		e := &effects[k]
		e.KL, e.StdErr = meanAndError(kl[k])
		if math.IsNaN(e.KL) || math.IsInf(e.KL, 0) {
			return nil, errors.Join(fmt.Errorf("eval: with another %s", rs[k].Linear), errNotFinite)
		}
	}
	return effects, nil
}

// headRows is how many rows of the head are replaced at a time. Tests make it smaller.
var headRows = 1024

// otherHead sets dst to the logits of hidden states x with another head, whose rows it takes a part at a time.
func otherHead(dst *tensor.Matrix, head *model.Head, x *tensor.Matrix, r Replacement) error {
	whole := head.Linear
	in := tensor.New(x.Rows, whole.In)
	head.In(in, x)
	for lo := 0; lo < whole.Out; lo += headRows {
		hi := min(lo+headRows, whole.Out)
		part := whole.Part(lo, hi)
		w, err := part.Matrix()
		if err != nil {
			return err
		}
		if part.F32, err = r.Weights(w); err != nil {
			return fmt.Errorf("%s: %w", r.Linear, err)
		}
		head.With(part, dst.View(0, dst.Rows, lo, hi), in)
	}
	return nil
}
