package pipeline

import (
	"encoding/gob"
	"fmt"
	"io"
	"slices"

	"github.com/llmq/llmq/model"
)

// rows quantizes rows of a linear.
func (w *Worker) rows(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	sums, lin, job, err := w.rowsJob(u)
	if err != nil {
		return nil, err
	}
	if u.First < 0 || u.Last > lin.Out || u.First >= u.Last {
		return nil, fmt.Errorf("%s has %d rows, the unit is of rows %d to %d", lin.Name, lin.Out, u.First, u.Last)
	}
	job.first = u.First
	part := lin
	if u.Last-u.First < lin.Out {
		part = lin.Part(u.First, u.Last)
	}
	if w.task.batched(w.layer.l.Stages[u.Stage].Sites[0], w.found.outputs) {
		if q, err := w.batchedRows(p, u, sums, lin, part, job); q != nil || err != nil {
			return q, err
		}
		// They stay as they are, and do not need each other: outputs would only say which are reported together.
	} else if job.outputs, err = w.found.outputs.of(lin, nil); err != nil {
		return nil, err
	}
	if u.Last-u.First < lin.Out {
		if job.inexact, err = offGrid(job.tensor, lin); err != nil {
			return nil, err
		}
		first := 0
		for i, h := range job.outputs {
			if first == u.First && first+h.Rows == u.Last {
				job.outputs = job.outputs[i : i+1]
				break
			}
			first += h.Rows
		}
	}
	q, err := p.linear(p.ctx, part, job)
	if err != nil {
		return nil, err
	}
	return oneRecord(job.tensor.Name, lin.First()+u.First, &q), nil
}

// batchedRows returns what writes rows of a linear, part of it, whose batches are quantized; nil where its rows stay as they are.
func (w *Worker) batchedRows(p *passage, u *unitSpec, sums *workedSums, lin, part *model.Linear, job *rowsJob) (func(io.Writer) error, error) {
	b, err := w.batched(p, sums, lin, job)
	if b == nil || err != nil {
		return nil, err
	}
	all := *u
	all.Batch = -1
	if err := b.learn(w, &all, job.tensor); err != nil {
		return nil, err
	}
	if slices.Contains(b.known, false) {
		return nil, fmt.Errorf("%s: not all batches are known of %d parts each", lin.Name, u.Parts)
	}
	if job.w, err = part.Matrix(); err != nil {
		return nil, fmt.Errorf("%s: %w", p.src.Name(), err)
	}
	q := b.rows(job, u.First, u.Last)
	p.shifts(&q, job)
	return oneRecord(job.tensor.Name, lin.First()+u.First, &q), nil
}

// rowsJob returns the linear that a unit is of, what is known of its inputs, and a job for its rows, without outputs.
func (w *Worker) rowsJob(u *unitSpec) (*workedSums, *model.Linear, *rowsJob, error) {
	if u.Stage >= len(w.layer.l.Stages) || u.Linear >= len(w.layer.l.Stages[u.Stage].Sites[0].Linears) {
		return nil, nil, nil, fmt.Errorf("layer %d, stage %d has no linear %d", u.Layer, u.Stage, u.Linear)
	}
	lin := w.layer.l.Stages[u.Stage].Sites[0].Linears[u.Linear]
	sums, err := w.summed(u)
	if err != nil {
		return nil, nil, nil, err
	}
	return sums, lin, &rowsJob{tensor: w.plan.Lookup(lin.Name), product: lin.Product, solver: sums.solver, in: sums.in}, nil
}

// offGrid says whether the type cannot store all of a linear's rows as they are: those that it could are then changed too, for
// what the others lose.
func offGrid(t *Tensor, lin *model.Linear) (bool, error) {
	if t.Type.Grid == nil {
		return false, nil
	}
	row, err := lin.Part(0, 1).Matrix()
	if err != nil || exactly(t, row) == nil {
		return true, err
	}
	w, err := lin.Matrix()
	return err == nil && exactly(t, w) == nil, err
}

func oneRecord(tensor string, first int, q *rows) func(io.Writer) error {
	return func(w io.Writer) error {
		enc := gob.NewEncoder(w)
		if err := saveRows(enc, w, tensor, first, q); err != nil {
			return err
		}
		return enc.Encode(&record{})
	}
}

// experts observes some experts over all of the text, and quantizes them.
func (w *Worker) experts(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	if u.Stage >= len(w.layer.l.Stages) || u.Site < 0 || u.Site >= u.End || u.End > len(w.layer.l.Stages[u.Stage].Sites) {
		return nil, fmt.Errorf("layer %d, stage %d has no sites %d to %d", u.Layer, u.Stage, u.Site, u.End)
	}
	s, err := w.allAt(u)
	if err != nil {
		return nil, err
	}
	at := &place{s: s.s, l: w.layer.l, original: s.original, ol: w.layer.ol, k: u.Stage, stays: true}
	sites := at.stage().Sites
	for _, s := range []*stream{s.s, s.original} {
		if s != nil && (u.End < len(sites) || sites[u.End-1].Expert >= 0) {
			s.st.OnlyExperts(u.Site, u.End)
			defer s.st.OnlyExperts(0, 0)
		}
	}
	in, _, err := p.observe(at, u.Site, u.End, false)
	if err != nil {
		return nil, err
	}
	var put []putRows
	for j, stats := range in {
		site := sites[u.Site+j]
		var tokens []int
		if site.Expert >= 0 && !site.Head {
			pooled, err := w.summed(u)
			if err != nil {
				return nil, err
			}
			tokens = []int{stats.Tokens}
			shrink(stats, pooled.in)
		}
		solver := w.plan.Recipe.Method.Open(stats)
		for _, lin := range site.Linears {
			job := &rowsJob{tensor: w.plan.Lookup(lin.Name), product: lin.Product, solver: solver, in: stats}
			if job.outputs, err = w.found.outputs.of(lin, nil); err != nil {
				return nil, err
			}
			q, err := p.linear(p.ctx, lin, job)
			if err != nil {
				return nil, err
			}
			q.tokens = tokens
			q.decoded = nil
			put = append(put, putRows{job.tensor.Name, lin.First(), q})
		}
		in[j] = nil
	}
	return func(w io.Writer) error {
		enc := gob.NewEncoder(w)
		for i := range put {
			if err := saveRows(enc, w, put[i].tensor, put[i].first, &put[i].rows); err != nil {
				return err
			}
		}
		return enc.Encode(&record{})
	}, nil
}

type putRows struct {
	tensor string
	first  int
	rows
}

// headRows quantizes rows of the head.
func (w *Worker) headRows(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	sums, err := w.summed(u)
	if err != nil {
		return nil, err
	}
	h, err := w.m.LoadHead()
	if err != nil {
		return nil, err
	}
	defer h.Release()
	if u.First < 0 || u.Last > h.Linear.Out || u.First >= u.Last {
		return nil, fmt.Errorf("the head has %d rows, the unit is of rows %d to %d", h.Linear.Out, u.First, u.Last)
	}
	q, err := p.headPart(h, u.First, u.Last, &rowsJob{tensor: w.plan.Lookup(outputName), solver: sums.solver, in: sums.in})
	if err != nil {
		return nil, err
	}
	return oneRecord(outputName, u.First, &q), nil
}
