package pipeline

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Rows whose errors matter together are one unit of work, as they need each other. Where they are all that a stage has, as those of attention's
// and an MLP's outputs, the other machines would wait. So they are divided as gptq.Coupled takes them: each batch among the machines, which
// tell each other what has become of them before the next. The rows come out of the last batch as units of the usual size.

// leastBatchPart is the fewest rows of a batch that a machine is given: as many as lanes. Tests take fewer.
var leastBatchPart = kernels.Lanes

// batched says whether the rows of a stage, which are those of one linear, are divided batch by batch. It depends on nothing but the plan and
// the Hessians of outputs.
func (t *task) batched(site *model.Site, outputs *outputs) bool {
	if len(site.Linears) != 1 || !UsesGPTQ(t.plan.Recipe.Method) {
		return false
	}
	lin := site.Linears[0]
	blocks := outputs.blocks(lin.ID())
	return len(blocks) == 1 && t.plan.Lookup(lin.Name).Type.Grid != nil && gptq.BatchRows(lin.Out) >= 2*leastBatchPart
}

// batchPart returns the positions of a part of a batch's.
func batchPart(c *gptq.Coupled, batch, part, parts int) (lo, hi int) {
	first, last := c.Bounds(batch)
	lo, hi = partRange(part, last-first, parts)
	return first + lo, first + hi
}

// byBatches has the batches of a stage's one linear quantized, one after the other, and returns how many parts each
// has, and the names of their values.
func (d *driver) byBatches(l *model.Layer, k int) (parts int, names []string, err error) {
	lin := l.Stages[k].Sites[0].Linears[0]
	u := unitSpec{Kind: unitBatch, Layer: l.Index, Stage: k, Half: d.halves}
	if u.Parts, err = d.batchParts(&u, lin.Out); err != nil {
		return 0, nil, err
	}
	for u.Batch = gptq.BatchCount(lin.Out) - 1; u.Batch >= 0; u.Batch-- {
		var units []engine.Unit
		for u.Part = range u.Parts {
			units = append(units, u.unit(d.kept, 1, fmt.Sprintf("batch-part%02d", u.Part)))
			names = append(names, u.name(d.kept))
		}
		if err := d.do(units); err != nil {
			return 0, nil, err
		}
	}
	return u.Parts, names, nil
}

// batchParts is how many parts the batches have of a linear with so many rows: as many as there are machines, or as they began with.
func (d *driver) batchParts(u *unitSpec, rows int) (int, error) {
	names, err := d.kept.work.Names()
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		of, ok := strings.CutPrefix(name, u.batchPrefix(d.kept))
		var batch, part, parts int
		if n, _ := fmt.Sscanf(of, "%d-part%dof%d", &batch, &part, &parts); ok && n == 3 {
			return parts, nil
		}
	}
	return max(1, min(d.opt.Engine.Machines(), gptq.BatchRows(rows)/leastBatchPart)), nil
}

// workedBatches are the rows of a linear that is quantized batch by batch, as far as they are known.
type workedBatches struct {
	*gptq.Coupled
	known []bool // by position: quantized, here or elsewhere
	data  []byte // of rows
}

// batched returns what is known of a linear that is quantized batch by batch, whose sums are known; nil where its rows stay as they are.
func (w *Worker) batched(p *passage, sums *workedSums, lin *model.Linear, job *rowsJob) (*workedBatches, error) {
	if sums.batches != nil || sums.stays {
		return sums.batches, nil
	}
	if sums.stays = stores(job.tensor, lin); sums.stays {
		return nil, nil
	}
	inexact, err := offGrid(job.tensor, lin)
	if sums.stays = err == nil && !inexact; err != nil || sums.stays {
		return nil, err
	}
	m, err := lin.Matrix()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.src.Name(), err)
	}
	if err := p.check(job.tensor, 0, m); err != nil {
		return nil, err
	}
	solver, ok := sums.solver.(gptq.CouplingSolver)
	if !ok {
		return nil, fmt.Errorf("method %s does not take rows by batches", w.plan.Recipe.Method.Name())
	}
	outputs, err := w.found.outputs.of(lin, nil)
	if err != nil {
		return nil, err
	}
	c, err := solver.Couple(p.ctx, quant.Job{W: m, Grid: job.tensor.Type.Grid, Product: job.product, Outputs: outputs})
	if err != nil {
		return nil, err
	}
	sums.batches = &workedBatches{c, make([]bool, m.Rows), make([]byte, job.tensor.Bytes())}
	return sums.batches, nil
}

// prepare corrects the rows that this worker may be expected to quantize: of u's batch and all that follow the part that u is of. One call
// for many takes little more than for a few.
func (b *workedBatches) prepare(u *unitSpec) {
	var positions []int
	for batch := u.Batch; batch >= 0; batch-- {
		lo, hi := batchPart(b.Coupled, batch, u.Part, u.Parts)
		for p := lo; p < hi; p++ {
			if !b.known[p] {
				positions = append(positions, p)
			}
		}
	}
	b.Prepare(positions)
}

// learn reads what other machines have made of the batches after u's.
func (b *workedBatches) learn(w *Worker, u *unitSpec, t *Tensor) error {
	of := *u
	of.Kind = unitBatch
	for of.Batch = b.Batches() - 1; of.Batch > u.Batch; of.Batch-- {
		for of.Part = range of.Parts {
			lo, hi := batchPart(b.Coupled, of.Batch, of.Part, of.Parts)
			if !slices.Contains(b.known[lo:hi], false) { // parts may have been others
				continue
			}
			if err := b.read(w, of.name(w.kept), t, lo, hi); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads the rows at positions [lo,hi): of each its target and its bytes.
func (b *workedBatches) read(w *Worker, name string, t *Tensor, lo, hi int) error {
	r, err := w.values.Open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	target, decoded := tensor.New(hi-lo, t.Cols()), tensor.New(hi-lo, t.Cols())
	data := make([]byte, (hi-lo)*t.Type.RowBytes(t.Cols()))
	size := len(data) / (hi - lo)
	for i := range hi - lo {
		err := readRow(r, target.Row(i))
		if err == nil {
			_, err = io.ReadFull(r, data[i*size:][:size])
		}
		if err != nil {
			return fmt.Errorf("the work folder: %s: %w", name, err)
		}
	}
	// The end was as it should be: until then the rows were as before.
	t.Type.ParseWeight(data, hi-lo, t.Cols()).DecodeTo(decoded)
	b.Take(lo, hi, target, decoded)
	b.note(lo, hi, data, t)
	return nil
}

// note keeps the bytes of the rows at positions [lo,hi).
func (b *workedBatches) note(lo, hi int, data []byte, t *Tensor) {
	for p := lo; p < hi; p++ {
		copy(b.row(p, t), data[(p-lo)*len(b.row(p, t)):])
		b.known[p] = true
	}
}

// row is the bytes of the row at a position.
func (b *workedBatches) row(position int, t *Tensor) []byte {
	size := t.Type.RowBytes(t.Cols())
	return b.data[b.Row(position)*size:][:size]
}

// batch quantizes a part of a batch.
func (w *Worker) batch(p *passage, u *unitSpec) (func(io.Writer) error, error) {
	sums, lin, job, err := w.rowsJob(u)
	if err != nil {
		return nil, err
	}
	b, err := w.batched(p, sums, lin, job)
	switch {
	case err != nil:
		return nil, err
	case b == nil:
		return func(io.Writer) error { return nil }, nil
	case u.Batch < 0 || u.Batch >= b.Batches() || u.Part < 0 || u.Part >= u.Parts:
		return nil, fmt.Errorf("the unit is of part %d of %d of batch %d, of %d", u.Part, u.Parts, u.Batch, b.Batches())
	}
	t := job.tensor
	if err := b.learn(w, u, t); err != nil {
		return nil, err
	}
	b.prepare(u)
	lo, hi := batchPart(b.Coupled, u.Batch, u.Part, u.Parts)
	q, err := b.Quantize(p.ctx, u.Batch, lo, hi)
	if err != nil {
		return nil, err
	}
	b.note(lo, hi, t.Type.PackWeight(q), t)
	return func(dst io.Writer) error {
		target := b.Target()
		for p := lo; p < hi; p++ {
			if _, err := dst.Write(raw(target.Row(b.Row(p)))); err != nil {
				return err
			}
			if _, err := dst.Write(b.row(p, t)); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// rows returns rows [lo,hi) of a linear whose batches are all quantized, as quantizeRows does, of weights that the job has.
func (b *workedBatches) rows(j *rowsJob, lo, hi int) rows {
	size := j.tensor.Type.RowBytes(j.w.Cols)
	q := rows{data: slices.Clone(b.data[lo*size : hi*size]), decoded: tensor.New(hi-lo, j.w.Cols)}
	j.tensor.Type.ParseWeight(q.data, hi-lo, j.w.Cols).DecodeTo(q.decoded)
	r := rounding{target: b.Target().View(lo, hi, 0, j.w.Cols), data: q.data, decoded: q.decoded, damping: b.Damping}
	q.rowsReport = j.reports(&r, nil)
	return q
}
