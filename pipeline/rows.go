package pipeline

import (
	"context"
	"runtime/debug"
	"sync/atomic"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// rowsJob is rows of a linear to be quantized. Rows depend on each other through outputs alone.
type rowsJob struct {
	tensor   *Tensor // whose type they get
	w        *tensor.Matrix
	again    func() (*tensor.Matrix, error) // makes w once more, which the solver takes; nil: it does not
	last     bool                           // of quant.Job
	first    int                            // of quant.Job
	product  bool                           // of quant.Job
	solver   quant.Solver
	in       *quant.Stats     // the inputs that the solver knows, by which errors are measured
	outputs  []*tensor.Matrix // of quant.Job
	rounding bool             // the error of rounding alone is asked for
	stored   []byte           // the rows as the checkpoint has them, where that is in the tensor's type; else nil
	inexact  bool             // it is known that not all of the linear's rows are on the type's grid
}

// rows is what became of a rowsJob.
type rows struct {
	data    []byte
	decoded *tensor.Matrix // what a reader of data sees
	shift   []float32      // of the outputs' means, where the bias is corrected; else nil
	rowsReport
}

// quantizeRows gives rows their type and measures what that does. It depends on nothing but j.
func quantizeRows(ctx context.Context, j *rowsJob) (rows, error) {
	r := rounding{target: j.w, data: j.stored, decoded: j.w, exact: true}
	if j.stored == nil {
		var err error
		if r, err = j.round(ctx); err != nil {
			return rows{}, err
		}
	}
	if j.w.Data == nil {
		var err error
		if j.w, err = j.again(); err != nil {
			return rows{}, err
		}
	}
	q := rows{data: r.data, decoded: r.decoded}
	if r.exact {
		r.decoded = j.w // what the checkpoint has is what it was rounded to
	}
	q.rowsReport = j.reports(&r, j.outputs)
	return q, nil
}

// reports measures what has become of the job's rows, of these blocks of outputs, so many rows at a time: a linear's sums are the same
// however its rows are divided among units.
func (j *rowsJob) reports(r *rounding, outputs []*tensor.Matrix) (rep rowsReport) {
	var blocks []int
	for _, h := range outputs {
		blocks = append(blocks, h.Rows)
	}
	lo := 0
	for _, block := range unitRows(j.w.Rows, blocks) {
		for _, n := range unitRows(block, nil) {
			part := j.report(r, lo, lo+n)
			rep.add(&part)
			lo += n
		}
	}
	return rep
}

// report measures what has become of rows [lo,hi) of the job.
func (j *rowsJob) report(r *rounding, lo, hi int) rowsReport {
	view := func(m *tensor.Matrix) *tensor.Matrix { return m.View(lo, hi, 0, m.Cols) }
	w, target, decoded := view(j.w), view(r.target), view(r.decoded)
	rep := rowsReport{damping: r.damping}
	rep.outputs.num, rep.outputs.den = quant.OutputEnergies(w, decoded, j.in.H)
	rep.weights.add(target, decoded)
	if r.exact {
		rep.exact = hi - lo
	} else {
		row := j.tensor.Type.RowBytes(w.Cols)
		rep.noise = roundingNoise(j.tensor.Type, r.data[lo*row:hi*row], target)
	}
	if j.rounding {
		rep.rounding.num, rep.rounding.den = quant.OutputEnergies(target, decoded, j.in.H)
	}
	return rep
}

// mostUnitRows is the most rows of a linear that a unit of work is given, where rows do not need each other: as many as GPTQ
// takes together on one processor.
var mostUnitRows = 1024

// unitRows divides the rows of a linear into those that a unit of work can have: each block of those that need each other, or
// where there are no blocks as many as suit. What is reported of a linear is summed over them, in order.
func unitRows(rows int, blocks []int) []int {
	if blocks != nil {
		return blocks
	}
	var parts []int
	for lo := 0; lo < rows; lo += mostUnitRows {
		parts = append(parts, min(mostUnitRows, rows-lo))
	}
	return parts
}

// rounding is a weight, or rows of one, as a type stores them.
type rounding struct {
	target  *tensor.Matrix // what was rounded: the weight, after corrections
	data    []byte
	decoded *tensor.Matrix // what a reader of data sees
	damping float64        // of quant.Result
	exact   bool           // the weights were on the type's grid: nothing is lost
}

// round rounds the job's rows.
func (j *rowsJob) round(ctx context.Context) (rounding, error) {
	job := quant.Job{W: j.w, First: j.first, Product: j.product, Outputs: j.outputs, Takes: j.again != nil, Last: j.last}
	if j.inexact {
		return solve(ctx, j.tensor, job, j.solver)
	}
	return round(ctx, j.tensor, job, j.solver)
}

// round gives the job's rows of a tensor its type by a solver that knows the inputs, if they are not on its grid already.
func round(ctx context.Context, t *Tensor, j quant.Job, s quant.Solver) (rounding, error) {
	if t.Type.Grid != nil {
		if data := exactly(t, j.W); data != nil {
			decoded := tensor.New(j.W.Rows, j.W.Cols)
			for i := range j.W.Rows {
				decodeRow(&ggml.Tensor{Info: ggml.Info{Type: t.Type}, Data: data}, decoded.Row(i), i)
			}
			return rounding{target: j.W, data: data, decoded: decoded, exact: true}, nil
		}
	}
	return solve(ctx, t, j, s)
}

// muchWeights are so many that the collector is not waited for.
const muchWeights = 1 << 24

// solve is round for rows that are on no grid.
func solve(ctx context.Context, t *Tensor, j quant.Job, s quant.Solver) (rounding, error) {
	if t.Type.Grid == nil {
		data, decoded := encode(t.Type, j.W, nil)
		return rounding{target: j.W, data: data, decoded: decoded}, nil
	}
	j.Grid = t.Type.Grid
	res, err := s.Quantize(ctx, j)
	if err != nil {
		return rounding{}, err
	}
	if j.Last && j.W.Data == nil && int64(j.W.Rows)*int64(j.W.Cols) >= muchWeights {
		debug.FreeOSMemory() // what the solver knew of the inputs, the most that a run has at a time
	}
	decoded := tensor.New(j.W.Rows, j.W.Cols)
	res.Weight.DecodeTo(decoded)
	return rounding{target: res.Target, data: t.Type.PackWeight(res.Weight), decoded: decoded, damping: res.Damping}, nil
}

// exactly returns rows w, as the checkpoint has them, in their type if they lie on its grid; nil if they do not.
func exactly(t *Tensor, w *tensor.Matrix) []byte {
	row := t.Type.RowBytes(w.Cols)
	// One row tells most weights that are on no grid.
	first := make([]byte, row)
	if w.Rows == 0 || !t.Type.EncodeExact(first, w.Row(0), t.From) {
		return nil
	}
	data := make([]byte, w.Rows*row)
	var off atomic.Bool
	kernels.Parallel(w.Rows, 4, func(lo, hi int) {
		for i := lo; i < hi && !off.Load(); i++ {
			if !t.Type.EncodeExact(data[i*row:(i+1)*row], w.Row(i), t.From) {
				off.Store(true)
			}
		}
	})
	if off.Load() {
		return nil
	}
	return data
}

// roundingNoise estimates ‖ΔW‖² of weights stored as data.
func roundingNoise(t *ggml.Type, data []byte, w *tensor.Matrix) float64 {
	if t.Grid == nil {
		return 0
	}
	return t.ParseWeight(data, w.Rows, w.Cols).Noise()
}

// encode rounds w to nearest. It returns the bytes and the values that a reader will see.
func encode(t *ggml.Type, w *tensor.Matrix, importance []float32) (data []byte, decoded *tensor.Matrix) {
	row := t.RowBytes(w.Cols)
	data = make([]byte, w.Rows*row)
	decoded = tensor.New(w.Rows, w.Cols)
	kernels.Parallel(w.Rows, 4, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			t.Encode(data[i*row:(i+1)*row], w.Row(i), importance)
			t.Decode(decoded.Row(i), data[i*row:(i+1)*row])
		}
	})
	return data, decoded
}

// errorSum gathers ‖ΔW‖² and ‖W‖² over pieces of a tensor.
type errorSum struct{ num, den float64 }

func (s *errorSum) add(w, decoded *tensor.Matrix) {
	for i := range w.Rows {
		d := decoded.Row(i)
		for j, v := range w.Row(i) {
			e := float64(v) - float64(d[j])
			s.num += e * e
			s.den += float64(v) * float64(v)
		}
	}
}

func (s errorSum) relative() float64 {
	if s.den == 0 {
		return min(s.num, 1)
	}
	return s.num / s.den
}
