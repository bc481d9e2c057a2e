package gptq

import (
	"context"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// lazyColumns is the number of columns whose errors are gathered before they reach the columns after them in one
// matrix product (the paper's block size B, section 3.3, step 2).
const lazyColumns = 128

// rowGrain is the least number of rows that a goroutine takes at a time.
const rowGrain = 8

// sweep is GPTQ proper: it chooses q's scales and codes for w.
func (f *Factor) sweep(ctx context.Context, q *quant.Weight, w *tensor.Matrix) error {
	n := w.Cols
	p := tensor.New(w.Rows, n) // w with its columns in f.order, carrying the errors so far
	kernels.Parallel(w.Rows, rowGrain, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			src, dst := w.Row(r), p.Row(r)
			for i, c := range f.order {
				dst[i] = src[c]
			}
		}
	})
	if f.block == 0 {
		f.fitAll(q, w)
	}
	errs := tensor.New(w.Rows, min(lazyColumns, n))
	for i0 := 0; i0 < n; i0 += lazyColumns {
		if err := ctx.Err(); err != nil {
			return err
		}
		i1 := min(i0+lazyColumns, n)
		e := errs.View(0, w.Rows, 0, i1-i0)
		kernels.Parallel(w.Rows, rowGrain, func(lo, hi int) {
			fit := newFitter(q.Grid, f)
			for r := lo; r < hi; r++ {
				f.sweepRow(q, r, p.Row(r), e.Row(r), i0, i1, fit)
			}
		})
		if i1 < n {
			kernels.GemmNN(p.View(0, w.Rows, i1, n), -1, e, f.u.View(i0, i1, i1, n))
		}
	}
	return nil
}

// sweepRow quantizes positions [i0,i1) of one row. row holds all of its weights in f.order; errs receives each
// position's error over U's diagonal.
func (f *Factor) sweepRow(q *quant.Weight, r int, row, errs []float32, i0, i1 int, fit *fitter) {
	g := q.Grid
	codes := q.Codes[r*q.Cols : (r+1)*q.Cols]
	groups := q.Cols / g.Group
	blocks := q.Cols / g.Block
	for i := i0; i < i1; i++ {
		c := f.order[i]
		if f.block != 0 && i%g.Block == 0 {
			fit.fit(q, r, row, i)
		}
		k := r*blocks + c/g.Block
		k2 := r*groups + c/g.Group
		scale, minimum := q.D[k]*float32(q.Sc[k2]), q.DMin[k]*float32(q.M[k2])
		code := g.Nearest(row[i], scale, minimum)
		codes[c] = code
		u := f.u.Row(i)
		err := (row[i] - (float32(scale*g.Level(code)) - minimum)) / u[i]
		errs[i-i0] = err
		kernels.Axpy(row[i+1:i1], -err, u[i+1:i1])
	}
}

// fitAll fits every block to the original weights, each column weighing as much as its Hessian diagonal.
func (f *Factor) fitAll(q *quant.Weight, w *tensor.Matrix) {
	g := q.Grid
	importance := make([]float32, w.Cols)
	for i := range importance {
		importance[i] = f.h.Row(i)[i]
	}
	kernels.Parallel(w.Rows, rowGrain, func(lo, hi int) {
		blocks := make([]quant.Block, w.Cols/g.Block)
		for r := lo; r < hi; r++ {
			for i := range blocks {
				blocks[i] = q.Block(r, i)
			}
			g.Fit(blocks, w.Row(r), importance)
			for i := range blocks {
				q.SetBlock(r, i, &blocks[i])
			}
		}
	})
}

// fitter fits a block when its turn comes. What a code error in the column at position i costs, once the columns after
// it have made up for it as well as they can, is its square over U[i][i]²: that is each column's importance.
type fitter struct {
	f             *Factor
	w, importance []float32
}

func newFitter(g *quant.Grid, f *Factor) *fitter {
	return &fitter{f: f, w: make([]float32, g.Block), importance: make([]float32, g.Block)}
}

// fit fits the block whose columns stand at positions i and after of the row.
func (t *fitter) fit(q *quant.Weight, r int, row []float32, i int) {
	g := q.Grid
	first := t.f.order[i] / g.Block * g.Block
	for p := i; p < i+g.Block; p++ {
		c := t.f.order[p] - first
		d := t.f.u.Row(p)[p]
		t.w[c] = row[p]
		t.importance[c] = 1 / (d * d)
	}
	b := [1]quant.Block{q.Block(r, first/g.Block)}
	g.Fit(b[:], t.w, t.importance)
	q.SetBlock(r, first/g.Block, &b[0])
}
