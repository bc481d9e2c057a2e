package gptq

import (
	"context"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// The paper spreads what is left of each column's rounding, δ = target − ŵ, over the columns to come with the rows of a
// Cholesky factor of H⁻¹. Those columns' targets are the same if they are computed from the errors e = w − ŵ of the
// original weights and a factor L·Lᵀ of H itself,
//
//	target_p = w_p + Σ e_k·L_kp / L_pp   over the columns k that are done,
//
// because the output error is ‖e·L‖² (Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
// Algorithm", arXiv:2507.18553). So H need not be inverted, and rounding errors in a target do not add up: whatever
// became of a column, e is exact. As L is lower triangular, the last position comes first.

const (
	// lazyColumns is the number of columns whose errors are gathered before they reach the columns after them in one
	// matrix product (the paper's block size B, section 3.3, step 2). The lanes of 512 columns fit the L2 cache, and a
	// product that is 512 deep is bound by its multiplications.
	lazyColumns = 512
	// eagerColumns is the same for the columns within.
	eagerColumns = 8
	// bandRows is the number of rows of a band: enough for the products, and little memory.
	bandRows = 1024
)

// rowGrain is the least number of rows that a goroutine takes at a time.
const rowGrain = 8

// band is some rows while they are quantized, and where that is done.
type band struct {
	r0, r1 int // the rows
	// residual is E·L, E = W−Ŵ, rows×in with columns in f.order, once the band is swept: what the factor makes of the rows' errors.
	residual *tensor.Matrix
	room     *tensor.Matrix // as large, for anything
}

// bandStep is what is done to a band: a sweep, which rounds its rows and sets its residual, or a descent, which starts there.
type bandStep func(ctx context.Context, b *band) error

// inBands calls do for bands of rows, one band on each processor at a time: rows do not need each other, so that processors
// meet only at the end, where those that are free share what is left of the others' products.
func (f *Factor) inBands(ctx context.Context, rows int, do bandStep) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(kernels.Processors())
	n := f.h.Rows
	for r0 := 0; r0 < rows; r0 += bandRows {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			b := &band{r0: r0, r1: min(r0+bandRows, rows)}
			m, giveBack := f.borrow(b.r1-b.r0, 2*n)
			defer giveBack()
			b.residual, b.room = m.View(0, m.Rows, 0, n), m.View(0, m.Rows, n, 2*n)
			return do(ctx, b)
		})
	}
	return g.Wait()
}

// inLanes calls do for 16 of a band's rows at a time, or what is left of them, with a T that nobody else has meanwhile.
func inLanes[T any](rows int, pool *sync.Pool, do func(t T, r0, r1 int)) {
	kernels.Parallel((rows+kernels.Lanes-1)/kernels.Lanes, 1, func(lo, hi int) {
		t := pool.Get().(T)
		defer pool.Put(t)
		for r := lo * kernels.Lanes; r < min(hi*kernels.Lanes, rows); r += kernels.Lanes {
			do(t, r, min(r+kernels.Lanes, rows))
		}
	})
}

// sweep is GPTQ proper: it chooses q's scales and codes for w.
func (f *Factor) sweep(q *quant.Weight, g *quant.Affine, w *tensor.Matrix) bandStep {
	if f.block == 0 {
		f.fitAll(q, g, w)
	}
	n := w.Cols
	sweepers := sync.Pool{New: func() any { return newSweeper(f, q, g) }}
	return func(ctx context.Context, b *band) error {
		rows, sums := b.r1-b.r0, b.residual // Σ e_k·L_kp over the columns that are done, in the end all
		sums.Zero()
		for i0, i1 := 0, n; i1 > 0; i1 = i0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			i0 = lazyStart(i1, g.Block)
			panels := f.panelsOf(i0, i1)
			errs := b.room.View(0, rows, 0, i1-i0)
			inLanes(rows, &sweepers, func(s *sweeper, lo, hi int) {
				s.i0, s.i1, s.panels = i0, i1, panels
				s.rows(w, sums.View(lo, hi, 0, n), errs.View(lo, hi, 0, i1-i0), b.r0+lo, b.r0+hi)
			})
			if i0 > 0 {
				// What bfloat16 leaves out of an error is 2⁻⁹ of it, far less than half a step between codes.
				f.addProduct(sums.View(0, rows, 0, i0), errs, true, i0, i1, 0)
			}
		}
		return nil
	}
}

// lazyStart returns where the columns that are gathered before position i1 start: with a block, if one starts there.
func lazyStart(i1, block int) int {
	start := max(i1-lazyColumns, 0)
	if first := (start + block - 1) / block * block; first < i1 {
		return first
	}
	return start
}

// sweeper quantizes positions [i0,i1) of 16 rows at a time, one in each lane.
type sweeper struct {
	f      *Factor
	q      *quant.Weight
	g      *quant.Affine
	i0, i1 int
	panels *columns.Panels // the factor at these positions
	spans  []int           // see spread
	// At each position: the weights, the sums for their targets, their errors and the codes that they became.
	weights, sums, errs, codes []kernels.Lane
	scale, minimum             []kernels.Lane // of each group of the present block
	fitter                     *fitter        // nil if scales are static
	row                        []float32      // codes, row by row
}

func newSweeper(f *Factor, q *quant.Weight, g *quant.Affine) *sweeper {
	n := min(lazyColumns, q.Cols)
	lanes := func() []kernels.Lane { return make([]kernels.Lane, n) }
	s := &sweeper{f: f, q: q, g: g, weights: lanes(), sums: lanes(), errs: lanes(), codes: lanes(),
		scale: make([]kernels.Lane, g.Groups()), minimum: make([]kernels.Lane, g.Groups()),
		row: make([]float32, kernels.Lanes*n),
	}
	if f.block != 0 {
		s.fitter = newFitter(g, f)
	}
	s.spans = spansFor(g, f.block != 0)
	return s
}

// rows quantizes rows [r0,r1). sums and e are theirs: sums has its columns in f.order, e receives each position's error, which sums
// then have too.
func (s *sweeper) rows(w, sums, e *tensor.Matrix, r0, r1 int) {
	g, f := s.g, s.f
	n := s.i1 - s.i0
	s.load(w.View(r0, r1, 0, w.Cols))
	toLanes(s.sums[:n], sums.View(0, r1-r0, s.i0, s.i1))
	present := -1 // the block whose scales are at hand
	for m0, m1 := 0, s.i1; m1 > s.i0; m1 = m0 {
		m0 = max(m1-eagerColumns, s.i0, (m1-1)/g.Block*g.Block)
		if s.fitter != nil && m1%g.Block == 0 {
			s.gather(w, sums, r0, r1, m1-g.Block)
			s.fitter.fit(s.q, r0, r1, m1-g.Block)
		}
		s.roundBatch(&present, r0, r1, m0, m1)
		s.spread(m0-s.i0, m1-s.i0)
	}
	rounded := tensor.FromSlice(r1-r0, n, s.row[:(r1-r0)*n])
	fromLanes(rounded, s.codes[:n])
	for r := r0; r < r1; r++ {
		codes := s.q.Codes[r*s.q.Cols:][:s.q.Cols]
		for j, v := range rounded.Row(r - r0) {
			codes[f.order[s.i0+j]] = int8(v)
		}
	}
	fromLanes(e, s.errs[:n])
	fromLanes(sums.View(0, r1-r0, s.i0, s.i1), s.sums[:n])
}

// spread tells the sums before place lo what places [lo,hi), a batch that is done, have come to: at once those of the smallest span around
// it, and when a span is done, what all of it has come to, those before it in the next larger span. A sum's terms come in the same order
// whatever spans there are.
func (s *sweeper) spread(lo, hi int) {
	n := s.i1 - s.i0
	for _, span := range s.spans {
		start := lo / span * span
		s.panels.Update(s.sums[start:lo], lo, start, s.errs[lo:hi], true)
		if start < lo {
			return
		}
		hi = min(lo+span, n)
	}
}

// spansFor returns the spans of spread, the last all of lazyColumns. AVX2 multiplies deep products at twice the speed of those that are
// eight deep. A batch must begin where a span does, which takes blocks of whole batches. Fitters look at the sums of a whole block, which must not
// lie in two spans.
func spansFor(g *quant.Affine, fits bool) []int {
	const small, large = 32, 256
	if kernels.CurrentTier().Lanes() != 8 || g.Block%eagerColumns > 0 || fits && large%g.Block > 0 {
		return []int{lazyColumns}
	}
	return []int{small, large, lazyColumns}
}

// load brings the weights of w's rows, at most 16, into the lanes.
func (s *sweeper) load(w *tensor.Matrix) {
	n := s.g.Block
	order := s.f.order[s.i0:s.i1]
	if s.fitter == nil || w.Rows < kernels.Lanes || n%kernels.Lanes > 0 || len(order)%n > 0 {
		for r := range w.Rows {
			row := w.Row(r)
			for j, c := range order {
				s.weights[j][r] = row[c]
			}
		}
		return
	}
	// The columns of a block are neighbours, only their order differs.
	for i := 0; i < len(order); i += n {
		first := order[i] / n * n
		toLanes(s.fitter.lanes, w.View(0, w.Rows, first, first+n))
		for k, c := range order[i : i+n] {
			s.weights[i+k] = s.fitter.lanes[c-first]
		}
	}
}

// toLanes brings m's rows, at most 16, into the lanes of dst, one for each column.
func toLanes(dst []kernels.Lane, m *tensor.Matrix) {
	if m.Rows == kernels.Lanes && m.Cols%kernels.Lanes == 0 {
		columns.FromRows(dst, m.Data, m.Stride)
		return
	}
	clear(dst)
	for r := range m.Rows {
		for j, v := range m.Row(r) {
			dst[j][r] = v
		}
	}
}

// fromLanes is toLanes' inverse.
func fromLanes(m *tensor.Matrix, src []kernels.Lane) {
	if m.Rows == kernels.Lanes && m.Cols%kernels.Lanes == 0 {
		columns.ToRows(m.Data, m.Stride, src)
		return
	}
	for r := range m.Rows {
		row := m.Row(r)
		for j := range row {
			row[j] = src[j][r]
		}
	}
}

// gather brings the targets of the block at positions i and after to the fitter.
func (s *sweeper) gather(w, sums *tensor.Matrix, r0, r1, i int) {
	n := s.g.Block
	first := s.f.order[i] / n * n
	for k, c := range s.f.order[i : i+n] {
		to := &s.fitter.lanes[c-first]
		inverse := s.f.inverse[i+k]
		if j := i + k - s.i0; j >= 0 {
			*to = s.weights[j]
			vector.Axpy(to[:], inverse, s.sums[j][:])
			continue
		}
		// The block is longer than lazyColumns, and the first to be quantized in the lanes.
		for r := r0; r < r1; r++ {
			to[r-r0] = w.Row(r)[c] + inverse*sums.Row(r - r0)[i+k]
		}
	}
	fromLanes(tensor.FromSlice(r1-r0, n, s.fitter.w[:(r1-r0)*n]), s.fitter.lanes)
}

// scales gathers the scales and minima of a block.
func (s *sweeper) scales(block, r0, r1 int) {
	for r := r0; r < r1; r++ {
		b := s.q.Block(r, block)
		for k := range s.scale {
			s.scale[k][r-r0], s.minimum[k][r-r0] = s.g.Scale(&b, k)
		}
	}
}

// roundBatch rounds positions [m0,m1), the last first. present is the block whose scales are at hand.
func (s *sweeper) roundBatch(present *int, r0, r1, m0, m1 int) {
	g, f := s.g, s.f
	at := func(c int) (group int) {
		if c/g.Block != *present {
			*present = c / g.Block
			s.scales(*present, r0, r1)
		}
		return c % g.Block / g.Group
	}
	lo, hi := m0-s.i0, m1-s.i0
	if s.fitter != nil && g.Codebook == nil { // all of one block
		var group [eagerColumns]int
		for i, c := range f.order[m0:m1] {
			group[i] = at(c)
		}
		columns.RoundInTurn(s.codes[lo:hi], s.errs[lo:hi], s.weights[lo:hi], s.sums[lo:hi], f.inverse[m0:m1],
			f.l.Data[m0*f.l.Stride+m0:], f.l.Stride, s.scale, s.minimum, &group, int8(g.CodeMin), int8(g.CodeMax), true)
		return
	}
	for i := m1 - 1; i >= m0; i-- {
		row, j := f.l.Row(i), i-s.i0
		s.round(j, at(f.order[i]), f.inverse[i])
		columns.Update(s.sums[lo:j+1], row[m0:i+1], 0, s.errs[j:j+1])
	}
}

// round rounds the column at place j with the scales of group k; inverse is 1/L's diagonal there.
func (s *sweeper) round(j, k int, inverse float32) {
	g := s.g
	w, sum, scale, minimum := &s.weights[j], &s.sums[j], &s.scale[k], &s.minimum[k]
	codes, errs := &s.codes[j], &s.errs[j]
	if g.Codebook == nil {
		columns.Round(codes, errs, w, sum, inverse, scale, minimum, int8(g.CodeMin), int8(g.CodeMax))
		return
	}
	for i, v := range w {
		code := g.Nearest(v+float32(inverse*sum[i]), scale[i], minimum[i])
		codes[i] = float32(code)
		errs[i] = v - (float32(scale[i]*g.Level(code)) - minimum[i])
	}
}

// fitAll fits every block to the original weights, each column weighing as much as its Hessian diagonal.
func (f *Factor) fitAll(q *quant.Weight, g *quant.Affine, w *tensor.Matrix) {
	kernels.Parallel(w.Rows, rowGrain, func(lo, hi int) {
		blocks := make([]quant.Block, w.Cols/g.Block)
		for r := lo; r < hi; r++ {
			for i := range blocks {
				blocks[i] = q.Block(r, i)
			}
			g.Fit(blocks, w.Row(r), f.diagonal, quant.Full)
			for i := range blocks {
				q.SetBlock(r, i, &blocks[i])
			}
		}
	})
}

// fitter fits a block of several rows when its turn comes. What a code error in the column at position i costs, once the
// columns after it have made up for it as well as they can, is its square times L[i][i]²: that is each column's importance.
type fitter struct {
	g             *quant.Affine
	f             *Factor
	blocks        []quant.Block
	lanes         []kernels.Lane // a block's weights
	w, importance []float32      // the same row by row
}

func newFitter(g *quant.Affine, f *Factor) *fitter {
	n := kernels.Lanes * g.Block
	return &fitter{g: g, f: f, blocks: make([]quant.Block, kernels.Lanes), lanes: make([]kernels.Lane, g.Block),
		w: make([]float32, n), importance: make([]float32, n)}
}

// fit fits the block whose columns stand at positions i and after to the weights w of rows [r0,r1).
func (t *fitter) fit(q *quant.Weight, r0, r1, i int) {
	g := t.g
	first := t.f.order[i] / g.Block * g.Block
	n := r1 - r0
	for k := range g.Block {
		c := t.f.order[i+k] - first
		d := t.f.l.Row(i + k)[i+k]
		t.importance[c] = d * d
	}
	for r := range n {
		copy(t.importance[r*g.Block:], t.importance[:g.Block])
		t.blocks[r] = q.Block(r0+r, first/g.Block)
	}
	g.Fit(t.blocks[:n], t.w[:n*g.Block], t.importance[:n*g.Block], quant.Coarse)
	for r := range n {
		q.SetBlock(r0+r, first/g.Block, &t.blocks[r])
	}
}
