package pipeline

import (
	"fmt"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// calibratesHead says whether the head is quantized on what comes out of the last layer. A head that is the embedding
// too is rounded like that: its rows are read as they are.
func (r *run) calibratesHead() bool {
	t := r.plan.Lookup(outputName)
	return r.m != nil && t != nil && t.Type.Grid != nil
}

// head quantizes the head, some rows at a time: it can be larger than all of a layer. Rows do not depend on each other.
func (r *run) head(s, original *stream) error {
	r.opt.Progress.Item("head")
	h, err := r.m.LoadHead()
	if err != nil {
		return err
	}
	defer h.Release()
	in := quant.NewStats(h.Linear.In)
	err = s.each(func(i int, x *tensor.Matrix) error {
		if err := r.ctx.Err(); err != nil {
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
		return err
	}
	t := r.plan.Lookup(outputName)
	solver := r.plan.Recipe.Method.Open(in)
	var weights, noise, outputs errorSum
	var damping float64
	step := max(1, batchWeights/h.Linear.In)
	for lo := 0; lo < h.Linear.Out; lo += step {
		w, err := h.Linear.Part(lo, min(lo+step, h.Linear.Out)).Matrix()
		if err != nil {
			return fmt.Errorf("%s: %w", r.src.Name(), err)
		}
		q, err := quantize(r.ctx, t, w, false, solver)
		if err != nil {
			return err
		}
		if err := r.out.WriteRows(t.Name, lo, q.data); err != nil {
			return err
		}
		weights.add(q.target, q.decoded)
		noise.num += roundingNoise(t.Type, q.data, w)
		lost, whole := quant.OutputEnergies(w, q.decoded, in.H)
		outputs.num += lost
		outputs.den += whole
		damping = q.damping
		r.opt.Progress.Add(int64(w.Rows * w.Cols))
	}
	r.report(t, outputs.relative(), damping)
	noise.den = weights.den
	rep := r.reports[t.Name]
	rep.WeightError, rep.ExpectedError = weights.relative(), noise.relative()
	return nil
}

// roundEmbeddings makes rows of the embedding's table those that a reader of the file will see; nil if they are as they
// were.
func (r *run) roundEmbeddings() func(rows *tensor.Matrix) error {
	t := r.plan.Lookup(embeddingName)
	if t.Type == t.From {
		return nil
	}
	return func(rows *tensor.Matrix) error {
		compact := rows.Clone()
		_, rounded := encode(t.Type, compact, nil)
		for k := range rows.Rows {
			copy(rows.Row(k), rounded.Row(k))
		}
		return nil
	}
}
