package pipeline

import (
	"fmt"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// calibratesHead says whether the head is quantized on what comes out of the last layer. A head that is the embedding
// too is rounded like that: its rows are read as they are.
func (t *task) calibratesHead() bool {
	head := t.plan.Lookup(outputName)
	return t.m != nil && head != nil && head.Type.Grid != nil
}

// head quantizes the head, some rows at a time: it can be larger than all of a layer. Rows do not depend on each other.
func (p *passage) head(s, original *stream) error {
	p.opt.Progress.Item("head")
	h, err := p.m.LoadHead()
	if err != nil {
		return err
	}
	defer h.Release()
	in, err := p.observeHead(s, original, h)
	if err != nil {
		return err
	}
	t := p.plan.Lookup(outputName)
	solver := p.plan.Recipe.Method.Open(in)
	step := headRows(h.Linear.In)
	for lo := 0; lo < h.Linear.Out; lo += step {
		q, err := p.headPart(h, lo, min(lo+step, h.Linear.Out), &rowsJob{tensor: t, solver: solver, in: in})
		if err != nil {
			return err
		}
		if err := p.out.rows(t, lo, &q); err != nil {
			return err
		}
	}
	return nil
}

// headRows is how many rows of a head with in columns are taken at a time.
func headRows(in int) int { return max(1, batchWeights/in) }

// headPart quantizes rows [lo,hi) of the head, whose weights it adds to the job.
func (p *passage) headPart(h *model.Head, lo, hi int, job *rowsJob) (q rows, err error) {
	if job.w, err = h.Linear.Part(lo, hi).Matrix(); err != nil {
		return q, fmt.Errorf("%s: %w", p.src.Name(), err)
	}
	return quantizeRows(p.ctx, job)
}

// observeHead returns statistics of the head's inputs.
func (p *passage) observeHead(s, original *stream, h *model.Head) (*quant.Stats, error) {
	sums := s.newShardedStats(h.Linear.In, nil, p.tempDir)
	defer sums.close()
	err := s.each(func(i int, x *tensor.Matrix) error {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		in, err := sums.of(i)
		if err != nil {
			return err
		}
		y := scratch(&s.copy, x.Rows, s.m.Dim)
		h.In(y, x)
		in.Observe(y)
		if original == nil {
			return nil
		}
		ox, err := original.x.Get(i)
		if err != nil {
			return err
		}
		oy := scratch(&original.copy, ox.Rows, s.m.Dim)
		h.In(oy, ox)
		subtract(oy, y)
		in.ObserveDrift(oy, y)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return sums.all()
}

// roundEmbeddings makes rows of tables of embeddings those that a reader of the file will see.
func (t *task) roundEmbeddings() model.ReplaceRows {
	return func(table string, rows *tensor.Matrix) error {
		t := t.plan.Lookup(table)
		if t.Type == t.From { // they are as they were
			return nil
		}
		compact := rows.Clone()
		_, rounded := encode(t.Type, compact, nil)
		for k := range rows.Rows {
			copy(rows.Row(k), rounded.Row(k))
		}
		return nil
	}
}
