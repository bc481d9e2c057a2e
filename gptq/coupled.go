package gptq

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/linalg"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Errors of several outputs together: what an error E of the weights does to the predictions is tr(H_O·E·H·Eᵀ), to second
// order and with inputs and gradients taken as independent, H_O = Σ ggᵀ over the gradients g at the outputs (Tseng et al.,
// YAQA, arXiv:2505.22988). With L·Lᵀ = H_O it is the sum of the rows' own errors of LᵀE under H. So Babai's nearest plane
// goes over rows as it goes over columns: batches of rows come from last to first, and a batch B is rounded to
//
//	target_B = w_B + L_BB⁻ᵀ·Σ L_kBᵀ·e_k   over the rows k that are done,
//
// e = w − ŵ being their errors. What is quantized is a batch of rows without any coupling, as ever.

// outputDamping is added to H_O's diagonal, as a share of its mean: 0.001 to 0.5 were tried.
const outputDamping = 0.01

// QuantizeCoupled is Quantize for rows whose errors matter together, as outputs say: see quant.Job.
func (f *Factor) QuantizeCoupled(ctx context.Context, w *tensor.Matrix, g quant.Grid, outputs []*tensor.Matrix) (*quant.Weight, error) {
	f.expectFewRows()
	q := quant.NewWeight(g, w.Rows, w.Cols)
	j := f.jointFor(g, joining(outputs))
	group, ctx := errgroup.WithContext(ctx)
	lo := 0
	for _, h := range outputs {
		hi := lo + h.Rows
		if hi > w.Rows {
			panic("gptq: the outputs do not fit the weight")
		}
		part, first := w.View(lo, hi, 0, w.Cols), lo
		group.Go(func() error { return f.coupled(ctx, q, first, part, j, h) })
		lo = hi
	}
	if lo != w.Rows {
		panic("gptq: the outputs do not fit the weight")
	}
	return q, group.Wait()
}

// coupled quantizes w, rows from first on of q, with h = H_O of these rows; small batches by j.
func (f *Factor) coupled(ctx context.Context, q *quant.Weight, first int, w *tensor.Matrix, j *joint, h *tensor.Matrix) error {
	quantize := func(t *tensor.Matrix) (*quant.Weight, *tensor.Matrix, int, error) {
		part, err := f.Quantize(ctx, t, j.g)
		if err == nil {
			part.DecodeTo(t)
		}
		return part, t, 0, err
	}
	if joins(h.Rows) {
		defer j.leave()
		quantize = func(t *tensor.Matrix) (*quant.Weight, *tensor.Matrix, int, error) { return j.quantize(t) }
	}
	c, err := newCoupled(w, h)
	if err != nil {
		return err
	}
	for i := c.Batches() - 1; i >= 0; i-- {
		if err := ctx.Err(); err != nil {
			return err
		}
		lo, hi := c.Bounds(i)
		part, decoded, from, err := quantize(c.targets(i, lo, hi))
		if err != nil {
			return err
		}
		for p := lo; p < hi; p++ {
			q.SetRow(first+c.Row(p), part, from+p-lo)
		}
		c.done(lo, hi, decoded, from)
	}
	return nil
}

// Coupled is rows whose errors matter together on their way through the batches, the last of them first. Rows of one batch do not need each
// other, so that several machines can quantize some each, which then tell each other what has become of them. Each corrects its own rows alone.
type Coupled struct {
	Damping float64 // of the factor: see quant.Result

	f        *Factor
	g        quant.Grid
	in       *quant.Stats // by which rows are corrected
	b        *batches
	w        *tensor.Matrix // what is rounded, but for what batches take over; of rows that are not corrected, the weights
	correct  []bool         // by position: w has the corrected row
	errs     *tensor.Matrix // of the rows that are done, at their positions
	feedback [][]kernels.Lane
	target   *tensor.Matrix // room for a batch
}

// newCoupled starts on w, with h = H_O of its rows, which targets and done take as they are.
func newCoupled(w, h *tensor.Matrix) (*Coupled, error) {
	b, err := newBatches(h)
	if err != nil {
		return nil, err
	}
	b.l = nil // the shares are what is needed of it
	c := &Coupled{b: b, w: w, errs: tensor.New(w.Rows, w.Cols), target: tensor.New(mostBatchRows, w.Cols)}
	c.feedback = make([][]kernels.Lane, mostBatchRows/kernels.Lanes)
	for k := range c.feedback {
		c.feedback[k] = make([]kernels.Lane, w.Cols)
	}
	return c, nil
}

// Batches is how many batches there are.
func (c *Coupled) Batches() int { return c.b.count }

// Bounds returns the positions [lo,hi) of batch i.
func (c *Coupled) Bounds(i int) (lo, hi int) { return c.b.bounds(i) }

// Row is the row at a position.
func (c *Coupled) Row(position int) int { return c.b.order[position] }

// Target returns what is rounded, rows×in: the rows corrected for the errors of everything before them, but not for each other's. Of
// rows that were neither prepared, quantized nor taken it has the weights.
func (c *Coupled) Target() *tensor.Matrix { return c.w }

// Prepare corrects the rows at some positions, but for those that are corrected already. Quantize does it for its rows; many at a time take
// less.
func (c *Coupled) Prepare(positions []int) {
	rows := make([]int, 0, len(positions))
	for _, p := range positions {
		if !c.correct[p] {
			c.correct[p] = true
			rows = append(rows, c.b.order[p])
		}
	}
	c.f.correctRows(c.w, c.in, rows)
}

// Take notes what another machine has made of the rows at positions [lo,hi): target has the rows of its Target, decoded what was rounded to,
// both (hi−lo)×in. Batches that follow go by their difference.
func (c *Coupled) Take(lo, hi int, target, decoded *tensor.Matrix) {
	for p := lo; p < hi; p++ {
		copy(c.w.Row(c.b.order[p]), target.Row(p-lo))
		c.correct[p] = true
	}
	c.done(lo, hi, decoded, 0)
}

// Quantize quantizes the rows at positions [lo,hi), which lie in batch i: all rows after it were quantized or taken. Any division of a batch
// gives the same.
func (c *Coupled) Quantize(ctx context.Context, i, lo, hi int) (*quant.Weight, error) {
	positions := make([]int, hi-lo)
	for k := range positions {
		positions[k] = lo + k
	}
	c.Prepare(positions)
	t := c.targets(i, lo, hi)
	q, err := c.f.Quantize(ctx, t, c.g)
	if err != nil {
		return nil, err
	}
	q.DecodeTo(t)
	c.done(lo, hi, t, 0)
	return q, nil
}

// targets returns what the rows at positions [lo,hi) of batch i are to be rounded to, valid until the next call.
func (c *Coupled) targets(i, lo, hi int) *tensor.Matrix {
	first, _ := c.b.bounds(i)
	c.b.feedback(c.feedback, c.errs, i, lo-first, hi-first)
	t := c.target.View(0, hi-lo, 0, c.w.Cols)
	for p := lo; p < hi; p++ {
		own, out := c.w.Row(c.b.order[p]), t.Row(p-lo)
		taken, lane := c.feedback[(p-first)/kernels.Lanes], (p-first)%kernels.Lanes
		for j, v := range own {
			out[j] = v + taken[j][lane]
		}
	}
	return t
}

// done notes the errors of the rows at positions [lo,hi), which are rows from first on of decoded.
func (c *Coupled) done(lo, hi int, decoded *tensor.Matrix, first int) {
	for p := lo; p < hi; p++ {
		e, d := c.errs.Row(p), decoded.Row(first+p-lo)
		for j, v := range c.w.Row(c.b.order[p]) {
			e[j] = v - d[j]
		}
	}
}

// batches are the rows of a linear in the order in which they are quantized, some at a time, the last first.
type batches struct {
	count int
	order []int          // order[p] is the row at position p
	l     *tensor.Matrix // lower triangular, L·Lᵀ = H_O, damped, with its rows in order
	// share has for each batch, each 16 rows of it and each position k after it, row k of L_kB·L_BB⁻¹: what these rows, one in each
	// lane, take over of row k's errors.
	share [][][]kernels.Lane
}

// mostBatchRows bounds a batch. 64 rows make products that are worth packing a factor for, and work for several processors.
const mostBatchRows = 4 * kernels.Lanes

// BatchRows is how many rows make up a batch of n whose outputs are coupled: few, as rows of a batch do not see each other's errors, but as many as fill
// lanes where there is much to do. A batch of a 32nd of the rows loses little; with one of a quarter half of the gain is lost.
func BatchRows(n int) int {
	rows := min(n/32, mostBatchRows)
	if rows > kernels.Lanes {
		rows -= rows % kernels.Lanes
	}
	return max(4, rows)
}

// BatchCount is how many batches n rows make up.
func BatchCount(n int) int { return (n + BatchRows(n) - 1) / BatchRows(n) }

// newBatches factors h, of which it reads what is on and below the diagonal. The rows that matter most come last in order, so
// first in time: all others can then make up for their errors. Without that order gradients that H_O was not made of predict 3%
// more error for an MLP's or attention's output, and a third more for queries, keys and values.
func newBatches(h *tensor.Matrix) (*batches, error) {
	n := h.Rows
	b := &batches{count: BatchCount(n), order: make([]int, n)}
	for i := range b.order {
		b.order[i] = i
	}
	slices.SortStableFunc(b.order, func(x, y int) int { return cmp.Compare(h.Row(x)[x], h.Row(y)[y]) })
	var mean float64
	for i := range n {
		d := h.Row(i)[i]
		if d < 0 || d-d != 0 {
			return nil, fmt.Errorf("gptq: the outputs' Hessian diagonal %d is %v: the gradients overflow float32", i, d)
		}
		mean += float64(d) / float64(n)
	}
	if mean == 0 {
		mean = 1 // no output matters: all matter alike
	}
	l := tensor.New(n, n)
	for damping := outputDamping; ; damping *= 10 {
		for i, r := range b.order {
			row := l.Row(i)[:i+1]
			for j, c := range b.order[:i+1] {
				row[j] = h.Row(max(r, c))[min(r, c)]
			}
			row[i] += float32(damping * mean)
		}
		if ok, _ := linalg.Cholesky(l); ok && finiteDiagonal(l) {
			break
		}
		if damping > maxDamping {
			return nil, fmt.Errorf("gptq: no damping makes the outputs' Hessian positive definite")
		}
	}
	b.l, b.share = l, make([][][]kernels.Lane, b.count)
	kernels.Parallel(b.count, 1, func(from, to int) {
		for i := from; i < to; i++ {
			b.share[i] = b.sharesOf(l, i)
		}
	})
	return b, nil
}

// bounds returns the positions of batch i.
func (b *batches) bounds(i int) (lo, hi int) {
	n := len(b.order)
	// The first n mod count batches have a row more, where that is not 0.
	size, more := n/b.count, n%b.count
	return i*size + min(i, more), (i+1)*size + min(i+1, more)
}

// sharesOf solves x·L_BB = L_kB for each position k after batch i.
func (b *batches) sharesOf(l *tensor.Matrix, i int) [][]kernels.Lane {
	lo, hi := b.bounds(i)
	shares := make([][]kernels.Lane, (hi-lo+kernels.Lanes-1)/kernels.Lanes)
	for part := range shares {
		shares[part] = make([]kernels.Lane, l.Rows-hi)
	}
	x := make([]float32, hi-lo)
	for k := range l.Rows - hi {
		copy(x, l.Row(hi + k)[lo:hi])
		for c := len(x) - 1; c >= 0; c-- { // row c of L_BB tells the elements before x_c what x_c makes of them
			row := l.Row(lo + c)[lo : lo+c+1]
			x[c] /= row[c]
			vector.Axpy(x[:c], -x[c], row[:c])
			shares[c/kernels.Lanes][k][c%kernels.Lanes] = x[c]
		}
	}
	return shares
}

// feedback sets dst, for each 16 rows of batch i a vector for each column, to what they take over of the errors errs of all rows
// after the batch: where rows [from,to) of the batch are among them.
func (b *batches) feedback(dst [][]kernels.Lane, errs *tensor.Matrix, i, from, to int) {
	_, hi := b.bounds(i)
	const grain = 64 // columns
	for part := from / kernels.Lanes; part*kernels.Lanes < to; part++ {
		shares := b.share[i][part]
		clear(dst[part])
		if len(shares) == 0 {
			continue
		}
		kernels.Parallel(len(dst[part]), grain, func(c0, c1 int) {
			columns.Update(dst[part][c0:c1], errs.Data[hi*errs.Stride+c0:], errs.Stride, shares)
		})
	}
}

// OutputGain predicts from gradients that fit has not seen what quantizing with fit's H_O does to the error tr(H_O·E·H·Eᵀ): its
// share of the error without. Rounding makes each row's target err alike, so that LᵀE = diag(L_BBᵀ)·U with the same energy in
// every row of U; the same rows of E alone are the error without. fit and held are H_O over some gradients and over others, in
// blocks as in quant.Job, of which only what is on and below the diagonal is read.
func OutputGain(fit, held []*tensor.Matrix) (float64, error) {
	var with, without float64
	for i, h := range fit {
		b, err := newBatches(h)
		if err != nil {
			return 0, err
		}
		n := h.Rows
		m := tensor.New(n, n) // L⁻¹·V·L⁻ᵀ, V being held's block with its rows in order
		for p, r := range b.order {
			for k, c := range b.order {
				m.Row(p)[k] = held[i].Row(max(r, c))[min(r, c)]
			}
			without += float64(held[i].Row(r)[r])
		}
		linalg.SolveTransposed(m, b.l)
		transpose(m)
		linalg.SolveTransposed(m, b.l)
		for at := range b.count {
			lo, hi := b.bounds(at)
			for r := lo; r < hi; r++ { // row r of L_BB, x: x·M_BB·xᵀ
				x := b.l.Row(r)
				for j := lo; j <= r; j++ {
					for k := lo; k <= r; k++ {
						with += float64(x[j]) * float64(m.Row(j)[k]) * float64(x[k])
					}
				}
			}
		}
	}
	if without == 0 {
		return 1, nil
	}
	return with / without, nil
}

// transpose transposes a square matrix in place.
func transpose(m *tensor.Matrix) {
	for i := range m.Rows {
		row := m.Row(i)
		for j := range i {
			other := &m.Row(j)[i]
			row[j], *other = *other, row[j]
		}
	}
}
