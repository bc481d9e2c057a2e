package gptq

import (
	"context"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// DefaultRefine is the number of passes of coordinate descent that still paid when measured.
const DefaultRefine = 4

// refine lowers the output error by coordinate descent: with everything else fixed, each code moves to the best value
// that the full Hessian sees, column after column, for the given number of passes or until none moves.
func (f *Factor) refine(ctx context.Context, q *quant.Weight, w *tensor.Matrix, passes int) error {
	if passes <= 0 {
		return nil
	}
	n := w.Cols
	// G = (W−Ŵ)H is half the negative gradient; it is kept up to date.
	values := tensor.New(w.Rows, n)
	q.DecodeTo(values)
	diff := tensor.New(w.Rows, n)
	for r := range w.Rows {
		a, b, d := w.Row(r), values.Row(r), diff.Row(r)
		for j := range d {
			d[j] = a[j] - b[j]
		}
	}
	grad := tensor.New(w.Rows, n)
	kernels.GemmNN(grad, 1, diff, f.h)
	deltas := tensor.New(w.Rows, min(lazyColumns, n))
	moved := make([]int, w.Rows)
	for range passes {
		clear(moved)
		for i0 := 0; i0 < n; i0 += lazyColumns {
			if err := ctx.Err(); err != nil {
				return err
			}
			i1 := min(i0+lazyColumns, n)
			d := deltas.View(0, w.Rows, 0, i1-i0)
			d.Zero()
			kernels.Parallel(w.Rows, rowGrain, func(lo, hi int) {
				local := make([]float32, i1-i0)
				for r := lo; r < hi; r++ {
					copy(local, grad.Row(r)[i0:i1])
					moved[r] += f.descendRow(q, r, values.Row(r), local, d.Row(r), i0, i1)
				}
			})
			kernels.GemmNN(grad, -1, d, f.h.View(i0, i1, 0, n))
		}
		total := 0
		for _, m := range moved {
			total += m
		}
		if total == 0 {
			break
		}
	}
	return nil
}

// descendRow moves the codes of columns [i0,i1) of one row, records by how much their values changed, and returns how
// many did. grad is the gradient of these columns; it is used up.
func (f *Factor) descendRow(q *quant.Weight, r int, values, grad, deltas []float32, i0, i1 int) int {
	g := q.Grid
	codes := q.Codes[r*q.Cols : (r+1)*q.Cols]
	groups := q.Cols / g.Group
	blocks := q.Cols / g.Block
	moved := 0
	for c := i0; c < i1; c++ {
		h := f.h.Row(c)
		k, k2 := r*blocks+c/g.Block, r*groups+c/g.Group
		scale, minimum := q.D[k]*float32(q.Sc[k2]), q.DMin[k]*float32(q.M[k2])
		code := g.Nearest(values[c]+grad[c-i0]/h[c], scale, minimum)
		if code == codes[c] {
			continue
		}
		v := float32(scale*g.Level(code)) - minimum
		d := v - values[c]
		codes[c], values[c], deltas[c-i0] = code, v, d
		kernels.Axpy(grad, -d, h[i0:i1])
		moved++
	}
	return moved
}
