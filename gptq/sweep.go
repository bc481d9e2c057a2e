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
		kernels.Parallel((w.Rows+kernels.Lanes-1)/kernels.Lanes, 1, func(lo, hi int) {
			s := newSweeper(f, q, i0, i1)
			for k := lo; k < hi; k++ {
				s.rows(p, e, k*kernels.Lanes, min((k+1)*kernels.Lanes, w.Rows))
			}
		})
		if i1 < n {
			kernels.GemmNN(p.View(0, w.Rows, i1, n), -1, e, f.u.View(i0, i1, i1, n))
		}
	}
	return nil
}

// sweeper quantizes positions [i0,i1) of 16 rows at a time, one in each lane.
type sweeper struct {
	f                     *Factor
	q                     *quant.Weight
	i0, i1                int
	columns, errs, levels []kernels.Lane // at each position: the weights, their errors over U's diagonal, and what they became
	scale, minimum        []kernels.Lane // of each group of the present block
	fitter                *fitter        // nil if scales are static
}

func newSweeper(f *Factor, q *quant.Weight, i0, i1 int) *sweeper {
	n := i1 - i0
	padded := (n + kernels.Lanes - 1) / kernels.Lanes * kernels.Lanes
	g := q.Grid
	s := &sweeper{f: f, q: q, i0: i0, i1: i1,
		columns: make([]kernels.Lane, padded), errs: make([]kernels.Lane, padded), levels: make([]kernels.Lane, n),
		scale: make([]kernels.Lane, g.Groups()), minimum: make([]kernels.Lane, g.Groups()),
	}
	if f.block != 0 {
		s.fitter = newFitter(g, f)
	}
	return s
}

// rows quantizes rows [r0,r1). p holds all of their weights in f.order; e receives each position's error over U's
// diagonal.
func (s *sweeper) rows(p, e *tensor.Matrix, r0, r1 int) {
	g := s.q.Grid
	n := s.i1 - s.i0
	s.load(p, r0, r1)
	present := -1 // the block whose scales are at hand
	for i := s.i0; i < s.i1; i++ {
		c := s.f.order[i]
		if s.fitter != nil && i%g.Block == 0 {
			s.gather(p, r0, r1, i)
			s.fitter.fit(s.q, r0, r1, i)
		}
		if c/g.Block != present {
			present = c / g.Block
			s.scales(present, r0, r1)
		}
		k := c % g.Block / g.Group
		u := s.f.u.Row(i)
		j := i - s.i0
		s.levels[j], s.errs[j] = s.round(j, k, u[i])
		kernels.SubtractLanes(s.columns[j+1:n], u[i+1:s.i1], &s.errs[j])
	}
	for lane := range r1 - r0 {
		codes := s.q.Codes[(r0+lane)*s.q.Cols:][:s.q.Cols]
		for j := range s.levels {
			codes[s.f.order[s.i0+j]] = int8(s.levels[j][lane])
		}
	}
	s.store(e, r0, r1)
}

// gather brings the weights of the block at positions i and after to the fitter.
func (s *sweeper) gather(p *tensor.Matrix, r0, r1, i int) {
	n := s.q.Grid.Block
	first := s.f.order[i] / n * n
	for r := r0; r < r1; r++ {
		w, row := s.fitter.w[(r-r0)*n:(r-r0+1)*n], p.Row(r)[i:i+n]
		for k, c := range s.f.order[i : i+n] {
			w[c-first] = row[k]
		}
	}
	if i == s.i0 {
		return
	}
	// What lies in the lanes has changed since.
	for k, c := range s.f.order[i:min(i+n, s.i1)] {
		for lane, v := range s.columns[i-s.i0+k][:r1-r0] {
			s.fitter.w[lane*n+c-first] = v
		}
	}
}

// load brings the weights of rows [r0,r1) into the lanes.
func (s *sweeper) load(p *tensor.Matrix, r0, r1 int) {
	n := s.i1 - s.i0
	if r1-r0 == kernels.Lanes && n == len(s.columns) {
		kernels.TransposeLanes(s.columns, p.Data[r0*p.Stride+s.i0:], p.Stride)
		return
	}
	clear(s.columns)
	for r := r0; r < r1; r++ {
		for j, v := range p.Row(r)[s.i0:s.i1] {
			s.columns[j][r-r0] = v
		}
	}
}

// store takes the errors of rows [r0,r1) to e.
func (s *sweeper) store(e *tensor.Matrix, r0, r1 int) {
	n := s.i1 - s.i0
	if r1-r0 == kernels.Lanes && n == len(s.columns) {
		kernels.RowsFromLanes(e.Data[r0*e.Stride:], e.Stride, s.errs)
		return
	}
	for r := r0; r < r1; r++ {
		for j := range e.Row(r)[:n] {
			e.Row(r)[j] = s.errs[j][r-r0]
		}
	}
}

// scales gathers the scales and minima of a block.
func (s *sweeper) scales(block, r0, r1 int) {
	for r := r0; r < r1; r++ {
		b := s.q.Block(r, block)
		for k := range s.scale {
			s.scale[k][r-r0], s.minimum[k][r-r0] = b.Scale(k)
		}
	}
}

// round rounds the column at place j with the scales of group k. It returns the codes, and the errors over u.
func (s *sweeper) round(j, k int, u float32) (codes, errs kernels.Lane) {
	g := s.q.Grid
	x, scale, minimum := &s.columns[j], &s.scale[k], &s.minimum[k]
	if g.Codebook == nil {
		return kernels.RoundLanes(x, scale, minimum, u, int8(g.CodeMin), int8(g.CodeMax))
	}
	for i, v := range x {
		code := g.Nearest(v, scale[i], minimum[i])
		codes[i] = float32(code)
		errs[i] = (v - (float32(scale[i]*g.Level(code)) - minimum[i])) / u
	}
	return codes, errs
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

// fitter fits a block of several rows when its turn comes. What a code error in the column at position i costs, once the
// columns after it have made up for it as well as they can, is its square over U[i][i]²: that is each column's importance.
type fitter struct {
	f             *Factor
	blocks        []quant.Block
	w, importance []float32
}

func newFitter(g *quant.Grid, f *Factor) *fitter {
	n := kernels.Lanes * g.Block
	return &fitter{f: f, blocks: make([]quant.Block, kernels.Lanes), w: make([]float32, n), importance: make([]float32, n)}
}

// fit fits the block whose columns stand at positions i and after to the weights w of rows [r0,r1).
func (t *fitter) fit(q *quant.Weight, r0, r1, i int) {
	g := q.Grid
	first := t.f.order[i] / g.Block * g.Block
	n := r1 - r0
	for k := range g.Block {
		c := t.f.order[i+k] - first
		d := t.f.u.Row(i + k)[i+k]
		t.importance[c] = 1 / (d * d)
	}
	for r := range n {
		copy(t.importance[r*g.Block:], t.importance[:g.Block])
		t.blocks[r] = q.Block(r0+r, first/g.Block)
	}
	g.Fit(t.blocks[:n], t.w[:n*g.Block], t.importance[:n*g.Block])
	for r := range n {
		q.SetBlock(r0+r, first/g.Block, &t.blocks[r])
	}
}
