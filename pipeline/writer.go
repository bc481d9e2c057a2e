package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// writer fills the output that the plan describes, and keeps what there is to report of each tensor.
type writer struct {
	*task
	file    Output
	partial *gguf.Writer // is the file, where a later process finds what is written there; nil where it does not
	recalls bool         // what is written was done before

	pending *errgroup.Group // batches of convert on their way to the disk, pendingWrites at most
	failed  context.Context // ends with the first that fails
	buffers chan []byte     // what they leave

	mu      sync.Mutex // guards what follows
	reports map[string]*TensorReport
	sums    map[string]*rowsReport // of the tensors whose rows are still being written
	unit    *unitWriter            // keeps what is written of a unit of work; nil where nothing is kept
}

func newWriter(t *task, path string) (*writer, error) {
	w := &writer{task: t, buffers: make(chan []byte, pendingWrites+1), reports: map[string]*TensorReport{}, sums: map[string]*rowsReport{}}
	if form := t.plan.form; form != nil {
		var err error
		w.file, err = form.Create(path, t.opt.Overwrite)
		return w, err
	}
	partial := t.kept.partial()
	f, err := t.plan.createFile(path, partial, t.opt.Overwrite)
	if err != nil {
		return nil, err
	}
	w.file = f
	if partial != "" {
		w.partial = f
	}
	return w, nil
}

// convertAll writes the tensors that no calibration reaches, one after the other: without calibration all. The head is for
// convertHead.
func (w *writer) convertAll() error {
	if w.m == nil {
		return w.convertThose("converted", func(*Tensor) bool { return true })
	}
	// Norms are made anew each time: --low-disk keeps them, and may have fetched them before it could check the file that they are in.
	if err := w.convertThose("converted", func(t *Tensor) bool { return t.Role != model.RoleHead && t.embeds() }); err != nil {
		return err
	}
	for i := range w.plan.Tensors {
		// What the forward pass leaves out may be as large as a layer: each matrix goes before the next one comes.
		t := &w.plan.Tensors[i]
		if !t.carried() {
			continue
		}
		if err := w.convertThose(fmt.Sprintf("converted-unused%04d", i), func(other *Tensor) bool { return other == t }); err != nil {
			return err
		}
		if err := w.spend(func(other *Tensor) bool { return other == t }); err != nil {
			return err
		}
	}
	return w.convertThose("", func(t *Tensor) bool { return t.Role != model.RoleHead && !t.embeds() && !t.carried() })
}

// embeds says whether a tensor is a matrix outside the layers.
func (t *Tensor) embeds() bool { return len(t.Shape) > 1 && ggml.ParseName(t.Name).Layer < 0 }

// carried says whether a tensor is a matrix of a layer that the forward pass leaves out.
func (t *Tensor) carried() bool {
	return len(t.Shape) > 1 && ggml.ParseName(t.Name).Layer >= 0 && t.Role == model.RoleUnused
}

// convertHead writes the head behind the layers, if no calibration reaches it and it is not written yet: in a checkpoint it lies with the last
// of them.
func (w *writer) convertHead() error {
	t := w.plan.Lookup(outputName)
	if w.m == nil || t == nil || w.reports[t.Name] != nil || w.calibrates(t) {
		return nil
	}
	if src := model.PassingOf(w.src); src != nil {
		return w.convertParts(t, src)
	}
	return w.convertThose("converted-head", func(t *Tensor) bool { return t.Role == model.RoleHead })
}

// convertThose writes some tensors. Where they are found again, that is a unit of work with a name: the checkpoint may have lost what they
// were made of. Without one it is not kept.
func (w *writer) convertThose(name string, those func(t *Tensor) bool) error {
	var converted []*Tensor
	for i := range w.plan.Tensors {
		if t := &w.plan.Tensors[i]; !w.calibrates(t) && those(t) {
			converted = append(converted, t)
		}
	}
	if w.partial == nil || len(converted) == 0 || name == "" {
		return w.convertEach(converted)
	}
	name = w.kept.prefix + name
	ok, err := w.unitWhole(name)
	switch {
	case err != nil:
		return err
	case ok:
		return w.recall(name, nil)
	}
	return w.keep(name, func() (notes, error) { return notes{}, w.convertEach(converted) })
}

// waited has rows converted, and waits until they are written.
func (w *writer) waited(convert func() error) error {
	w.pending, w.failed = errgroup.WithContext(w.ctx)
	w.pending.SetLimit(pendingWrites)
	if err := convert(); err != nil {
		return cmp.Or(w.pending.Wait(), err)
	}
	return w.pending.Wait()
}

func (w *writer) convertEach(converted []*Tensor) error {
	return w.waited(func() error { return w.convertAfter(converted) })
}

// convertAfter converts tensors one after the other.
func (w *writer) convertAfter(converted []*Tensor) error {
	item := ""
	for i, t := range converted {
		if i+1 < len(converted) && 4*converted[i+1].Elements() <= readAheadBytes {
			w.src.ReadAhead(converted[i+1].Name)
		}
		if name := ggml.ItemName(t.Name); name != item && w.m == nil {
			item = name
			w.opt.Progress.Item(item)
		}
		var sum rowSum
		if err := w.convertRows(t, 0, t.Rows(), &sum); err != nil {
			return err
		}
		w.report(t, sum.rowsReport())
		if w.m == nil {
			if err := w.spend(func(other *Tensor) bool { return other == t }); err != nil {
				return err
			}
		}
	}
	return nil
}

// calibrates says whether a tensor is written when the calibration text reaches it.
func (t *task) calibrates(tensor *Tensor) bool {
	if t.m == nil {
		return false
	}
	inLayer := ggml.ParseName(tensor.Name).Layer >= 0
	return tensor.Role == model.RoleLinear || t.changesVectors() && tensor.Role == model.RoleVector && inLayer ||
		tensor.Role == model.RoleHead && t.calibratesHead()
}

// convertRows rounds rows [from,to) of a tensor to nearest and writes them. The write may end after the return: see writer.pending. The errors
// are added to sum, and kept with the last rows.
func (w *writer) convertRows(t *Tensor, from, to int, sum *rowSum) error {
	w.opt.Progress.Detail(ggml.ParseName(t.Name).Stem)
	cols := t.Cols()
	step := batchRows(t)
	importance := w.opt.importance(t)
	for lo := from; lo < to; lo += step {
		if err := context.Cause(w.failed); err != nil {
			return err
		}
		hi := min(lo+step, to)
		in, first, err := w.fetch(t, lo, hi)
		if err != nil {
			return err
		}
		data := w.buffer((hi - lo) * t.Type.RowBytes(cols))
		parts := make([]rowSum, hi-lo)
		// Small ranges, as writing takes processors away from some goroutines.
		var next atomic.Int64
		kernels.Parallel(kernels.Processors(), 1, func(int, int) {
			c := newConverter(t, in)
			defer c.free()
			n := max(1, rowWeights/cols)
			for a := int(next.Add(int64(n))) - n; a < len(parts); a = int(next.Add(int64(n))) - n {
				for i := a; i < min(a+n, len(parts)); i++ {
					parts[i] = c.row(data[i*t.Type.RowBytes(cols):(i+1)*t.Type.RowBytes(cols)], lo+i-first, importance.row(lo+i))
				}
			}
		})
		for i := range parts {
			if parts[i].suspect() {
				if err := w.checkRow(t, in, first, lo+i); err != nil {
					return err
				}
			}
			sum.add(&parts[i])
		}
		q := rows{data: data}
		if hi == to {
			q.rowsReport = *sum.rowsReport()
		}
		unit := w.unit
		w.pending.Go(func() error {
			defer w.recycle(data)
			if err := w.file.WriteRows(t.Name, lo, data); err != nil {
				return err
			}
			return unit.rows(t.Name, lo, &q)
		})
		w.opt.Progress.Add(w.counts(t, (hi-lo)*cols))
		if hi == to && t.values == nil {
			w.src.Release(in)
		}
	}
	return nil
}

// fetch returns a tensor, or where the source has them rows [lo,hi) of it, and which row is the first of what it returns.
func (w *writer) fetch(t *Tensor, lo, hi int) (in *ggml.Tensor, first int, err error) {
	switch {
	case t.coded:
		in, err = w.src.(coded).Codes(t.Name, lo, hi)
		return in, lo, err
	case t.values != nil:
		return t.valuesTensor(), 0, nil
	}
	if src, ok := w.src.(model.RowSource); ok && len(t.Shape) > 1 {
		in, err = src.Rows(t.Name, lo, hi)
		return in, lo, err
	}
	in, err = w.src.Tensor(t.Name)
	return in, 0, err
}

// rows writes what has become of rows of a tensor, from row first on. The tensor is reported with its last ones.
func (w *writer) rows(t *Tensor, first int, q *rows) error {
	if err := w.file.WriteRows(t.Name, first, q.data); err != nil {
		return err
	}
	if err := w.unit.rows(t.Name, first, q); err != nil {
		return err
	}
	w.wrote(t, first, len(q.data)/t.Type.RowBytes(t.Cols()), &q.rowsReport)
	return nil
}

// wrote notes that n rows of a tensor, from row first on, are written.
func (w *writer) wrote(t *Tensor, first, n int, rep *rowsReport) {
	w.mu.Lock()
	sums := w.sums[t.Name]
	if sums == nil {
		sums = &rowsReport{}
		w.sums[t.Name] = sums
	}
	sums.add(rep)
	w.mu.Unlock()
	if units := w.counts(t, n*t.Cols()); w.recalls {
		w.opt.Progress.Skip(units)
	} else {
		w.opt.Progress.Add(units)
	}
	if first+n < t.Rows() {
		return
	}
	w.opt.Progress.Detail(ggml.ParseName(t.Name).Stem)
	w.report(t, sums)
}

// vectors writes the norms and biases of a layer after transforms and bias correction.
func (w *writer) vectors(l *model.Layer) error {
	vectors := l.Vectors()
	for i := range w.plan.Tensors {
		t := &w.plan.Tensors[i]
		v, ok := vectors[t.Name]
		if !ok || t.Role != model.RoleVector { // what is kept is converted like what is outside the layers
			continue
		}
		x := tensor.FromSlice(1, len(v), v)
		if err := w.check(t, 0, x); err != nil {
			return err
		}
		data, decoded := encode(t.Type, x, nil)
		q := rows{data: data, rowsReport: rowsReport{outputs: errorSum{quant.WeightError(x, decoded), 1}}}
		if err := w.rows(t, 0, &q); err != nil {
			return err
		}
	}
	return nil
}

// rowsReport gathers what is reported of a tensor, over its rows.
type rowsReport struct {
	outputs, rounding, weights errorSum
	noise, damping             float64
	tokens                     []int // of experts, one each
	exact                      int   // rows that lost nothing
}

func (s *rowsReport) add(o *rowsReport) {
	for _, p := range [][2]*errorSum{{&s.outputs, &o.outputs}, {&s.rounding, &o.rounding}, {&s.weights, &o.weights}} {
		p[0].num += p[1].num
		p[0].den += p[1].den
	}
	s.noise += o.noise
	s.exact += o.exact
	s.damping = max(s.damping, o.damping)
	s.tokens = append(s.tokens, o.tokens...)
}

// report notes what has become of a tensor.
func (w *writer) report(t *Tensor, s *rowsReport) {
	rep := &TensorReport{
		Name: t.Name, Type: t.Type.Name, Bytes: t.Bytes(), RelativeError: s.outputs.relative(), Damping: s.damping,
		WeightError: s.weights.relative(), ExpectedError: errorSum{s.noise, s.weights.den}.relative(),
		rounding: s.rounding.relative(), ExpertTokens: s.tokens, Lossless: t.Type.Grid != nil && s.exact == t.Rows(),
	}
	if t.Wanted != t.Type {
		rep.Wanted = t.Wanted.Name
	}
	from := t.From
	if factorsOf(w.src, t.Name) != nil {
		from = ggml.NVFP4
	}
	if from.Grid != nil && !rep.Lossless && !isOriginal(w.src) {
		rep.RequantizedFrom = from.Name
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reports[t.Name] = rep
}

// setMetadata stores what is known of the file when its tensors are written: the scales of the linears' inputs, and the
// relative errors of the tensors, so that a file tells where it is weak.
func (w *writer) setMetadata(seen *observer) error {
	if w.plan.Recipe.Method.Needs().Int8Inputs {
		if err := w.file.SetMeta(model.StaticScalesKey, seen.scales(w.plan)); err != nil {
			return err
		}
	}
	if _, ok := w.plan.Metadata.Get(model.ErrorsKey); !ok {
		return nil
	}
	errors := make([]float32, len(w.plan.Tensors))
	for i := range errors {
		errors[i] = float32(w.reports[w.plan.Tensors[i].Name].RelativeError)
	}
	return w.file.SetMeta(model.ErrorsKey, errors)
}

// buffer returns n bytes, of what is left from a batch that is on the disk if there is one.
func (w *writer) buffer(n int) []byte {
	select {
	case b := <-w.buffers:
		if cap(b) >= n {
			return b[:n]
		}
	default:
	}
	// Tensors are of different sizes: one buffer suits all, but for those that have longer rows than a batch.
	largest := n
	for i := range w.plan.Tensors {
		t := &w.plan.Tensors[i]
		largest = max(largest, min(t.Rows(), batchRows(t))*t.Type.RowBytes(t.Cols()))
	}
	return make([]byte, n, largest)
}

func (w *writer) recycle(b []byte) {
	select {
	case w.buffers <- b:
	default:
	}
}

// check refuses weights, rows of t from first on, that are not finite or that t's type would make infinite.
func (w *task) check(t *Tensor, first int, x *tensor.Matrix) error {
	for i := range x.Rows {
		for j, v := range x.Row(i) {
			if err := w.checkWeight(t, first+i, j, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkWeight refuses t's element v at [row col].
func (w *task) checkWeight(t *Tensor, row, col int, v float32) error {
	const maxFloat16 = 65504
	finite := v-v == 0
	if finite && (t.Type != ggml.F16 || math.Abs(float64(v)) <= maxFloat16) {
		return nil
	}
	where := fmt.Sprintf("[%d %d]", row, col)
	if len(t.Shape) == 1 {
		where = fmt.Sprint(col)
	}
	where = fmt.Sprintf("%s: tensor %q: element %s is %v", w.src.Name(), t.Name, where, v)
	if finite {
		return model.WeightsErrorf("%s, beyond F16's largest value %d: choose bf16 or f32 for this tensor", where, maxFloat16)
	}
	return model.WeightsErrorf("%s", where)
}

// checkRow is check for one row of a stored tensor.
func (w *writer) checkRow(t *Tensor, in *ggml.Tensor, first, row int) error {
	x := make([]float32, t.Cols())
	decodeRow(in, x, row-first)
	for j, v := range x {
		if err := w.checkWeight(t, row, j, v); err != nil {
			return err
		}
	}
	return nil
}
