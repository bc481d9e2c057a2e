package pipeline

import (
	"errors"
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/model"
)

// A source whose weights come and go (model.Passing) is told which are spent, as soon as nothing reads them again and, in a run with a work
// folder, what was made of them is kept. Vectors and routers are not: each process converts them anew.

// damaged says of a run that weights have ended whether they are what they should be, which of those that come and go is not known before: else
// the checkpoint would be blamed for what only its download did, each time that the run goes on with it.
func damaged(src Source, err error) error {
	passing := model.PassingOf(src)
	if _, ok := errors.AsType[*model.WeightsError](err); !ok || passing == nil {
		return nil
	}
	if e := passing.Check(); e != nil {
		return errors.Join(e, err)
	}
	return nil
}

// spend says that tensors are not read again.
func (t *task) spend(which func(t *Tensor) bool) error {
	src := model.PassingOf(t.src)
	if src == nil {
		return nil
	}
	var rows []model.Rows
	for i := range t.plan.Tensors {
		if t := &t.plan.Tensors[i]; which(t) {
			rows = append(rows, model.Rows{Name: t.Name, Hi: t.Rows()})
		}
	}
	return src.Spend(rows)
}

// spendLayer says that layer i is done and the hidden states behind it are kept.
func (t *task) spendLayer(i int) error {
	return t.spend(func(tensor *Tensor) bool { return tensor.spentBehind(i) })
}

// spentBehind says whether nothing reads a tensor again behind layer i. Nothing embeds again behind the first one.
func (t *Tensor) spentBehind(i int) bool {
	layer := ggml.ParseName(t.Name).Layer
	return layer == i && t.Role == model.RoleLinear || i == 0 && layer < 0 && t.Role == model.RoleEmbedding
}

// convertHeadHere is convertHead of a run before the end of its layers where weights come and go, and the head has come: it leaves more room
// than it takes, and the layers' rows are yet to be written.
func (w *writer) convertHeadHere() error {
	if src := model.PassingOf(w.src); src == nil || w.plan.Lookup(outputName) == nil || !src.Here(outputName) {
		return nil
	}
	return w.convertHead()
}

// headParts is in how many parts the head is converted where weights come and go, at most: that much of it is there twice.
const headParts = 16

// headStep is how many rows of the head are a part: batches.
func headStep(t *Tensor) int {
	batch := batchRows(t)
	batches := (t.Rows() + batch - 1) / batch
	return (batches + headParts - 1) / headParts * batch
}

// convertParts writes the head in parts of some rows. Where they are found again, each is a unit of work.
func (w *writer) convertParts(t *Tensor, src model.Passing) error {
	var sum rowSum // over all rows in their order, whoever converts them
	step := headStep(t)
	for lo := 0; lo < t.Rows(); lo += step {
		hi := min(lo+step, t.Rows())
		if err := w.convertPart(t, lo, hi, &sum); err != nil {
			return err
		}
		if err := src.Spend([]model.Rows{{Name: t.Name, Lo: lo, Hi: hi}}); err != nil {
			return err
		}
	}
	w.report(t, sum.rowsReport())
	return nil
}

// convertPart writes rows [lo,hi) of the head, unless it finds them. sum is over the rows before, and then over these too.
func (w *writer) convertPart(t *Tensor, lo, hi int, sum *rowSum) error {
	do := func() error { return w.waited(func() error { return w.convertRows(t, lo, hi, sum) }) }
	if w.partial == nil {
		return do()
	}
	name := fmt.Sprintf("%sconverted-head%07d", w.kept.prefix, lo)
	ok, err := w.unitWhole(name)
	switch {
	case err != nil:
		return err
	case !ok:
		return w.keep(name, func() (notes, error) { return notes{}, do() })
	}
	f, err := w.kept.work.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return eachRecord(f, name, w.plan, func(t *Tensor, rec *record, _ []byte) error {
		n := rec.Bytes / t.Type.RowBytes(t.Cols())
		if rec.First+n == hi { // the last has the sums
			*sum = rowSum{errorSum{rec.Report.Weights[0], rec.Report.Weights[1]}, rec.Report.Noise, rec.Report.Exact}
		}
		w.opt.Progress.Skip(w.counts(t, n*t.Cols()))
		return w.partial.HaveRows(t.Name, rec.First, n)
	}, nil)
}
