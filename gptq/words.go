package gptq

import (
	"context"
	"slices"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// GPTQ on codebooks: the columns of a word are rounded as one. With s = Σ e_k·L_kU over the columns k that are done, a unit U
// of columns adds ‖e_U·L_UU + s‖² to the output error, L_UU being its own triangle of the factor. For ŵ = w + δ, e = −δ, that
// is a constant and
//
//	−2·G·δᵀ + δ·M·δᵀ,   M = L_UU·L_UUᵀ,   G = s·L_UUᵀ.
//
// Descent meets the same with the Hessian's own M = H_UU, where G = ((W−Ŵ)H)_U and δ is what ŵ moves by.

// sweepWords is sweep for words.
func (f *Factor) sweepWords(q *quant.Weight, g *quant.Lattice, w *tensor.Matrix) bandStep {
	n := w.Cols
	units := f.unitTriangles()
	sweepers := sync.Pool{New: func() any { return newWordSweeper(f, g, units) }}
	return func(ctx context.Context, b *band) error {
		rows, sums := b.r1-b.r0, b.residual // as in sweep
		errs := b.room.View(0, rows, 0, g.Block)
		sums.Zero()
		for i0 := n - g.Block; i0 >= 0; i0 -= g.Block {
			if err := ctx.Err(); err != nil {
				return err
			}
			inLanes(rows, &sweepers, func(s *wordSweeper, lo, hi int) {
				s.rows(q, w.View(b.r0+lo, b.r0+hi, 0, n), sums.View(lo, hi, i0, i0+g.Block), errs.View(lo, hi, 0, g.Block), b.r0+lo, i0)
			})
			if i0 > 0 {
				f.addProduct(sums.View(0, rows, 0, i0), errs, true, i0, i0+g.Block, 0)
			}
		}
		return nil
	}
}

// unitTriangle is what a unit's own triangle of the factor, L_UU, makes of errors.
type unitTriangle struct {
	metric     *unitMetric // L_UU·L_UUᵀ
	transposed []float32   // L_UUᵀ
}

// unitTriangles returns those of the units at positions 0, unit, 2·unit, …, which it makes once.
func (f *Factor) unitTriangles() []unitTriangle {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.units != nil {
		return f.units
	}
	n := f.unit
	f.units = make([]unitTriangle, f.h.Rows/n)
	kernels.Parallel(len(f.units), rowGrain, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			l := f.l.View(i*n, (i+1)*n, i*n, (i+1)*n)
			m, t := make([]float32, n*n), make([]float32, n*n)
			for a := range n {
				for b := range a + 1 {
					t[b*n+a] = l.Row(a)[b]
					var sum float64
					for k := range b + 1 {
						sum += float64(l.Row(a)[k]) * float64(l.Row(b)[k])
					}
					m[a*n+b], m[b*n+a] = float32(sum), float32(sum)
				}
			}
			f.units[i] = unitTriangle{newUnitMetric(n, m), t}
		}
	})
	return f.units
}

// wordSweeper quantizes the block at positions [i0,i0+Block) of 16 rows at a time, one in each lane.
type wordSweeper struct {
	f       *Factor
	g       *quant.Lattice
	units   []unitTriangle // by position
	rounder unitRounder

	weights, sums, errs, targets []kernels.Lane // weights and targets by column, sums and errs by position
	fitted, importance           []float32      // targets row by row, and what each column counts
	blocks                       []quant.Block
}

func newWordSweeper(f *Factor, g *quant.Lattice, units []unitTriangle) *wordSweeper {
	lanes := func() []kernels.Lane { return make([]kernels.Lane, g.Block) }
	return &wordSweeper{f: f, g: g, units: units, weights: lanes(), sums: lanes(), errs: lanes(),
		targets: lanes(), fitted: make([]float32, kernels.Lanes*g.Block), importance: make([]float32, kernels.Lanes*g.Block),
		blocks: make([]quant.Block, kernels.Lanes)}
}

// rows quantizes the block of w's rows, at most 16, the first of which is row r0 of q. sums and errs are theirs, by position; errs
// receives the block's errors, which sums then have too.
func (s *wordSweeper) rows(q *quant.Weight, w, sums, errs *tensor.Matrix, r0, i0 int) {
	g, f := s.g, s.f
	order := f.order[i0 : i0+g.Block]
	unit := g.Unit()
	first := order[0] / g.Block * g.Block
	toLanes(s.weights, w.View(0, w.Rows, first, first+g.Block))
	toLanes(s.sums, sums)
	for j, c := range order {
		d := f.l.Row(i0 + j)[i0+j]
		to := &s.targets[c-first]
		*to = s.weights[c-first]
		if !f.opt.StaticScales {
			for i, v := range s.sums[j] {
				to[i] += v / d
			}
		}
		s.importance[c-first] = d * d
	}
	fromLanes(tensor.FromSlice(w.Rows, g.Block, s.fitted[:w.Rows*g.Block]), s.targets)
	for r := range w.Rows {
		copy(s.importance[r*g.Block:], s.importance[:g.Block])
		s.blocks[r] = q.Block(r0+r, first/g.Block)
	}
	g.Fit(s.blocks[:w.Rows], s.fitted[:w.Rows*g.Block], s.importance[:w.Rows*g.Block], quant.Coarse)
	for r := range w.Rows {
		q.SetBlock(r0+r, first/g.Block, &s.blocks[r])
	}
	t := &s.rounder
	for j := g.Block - unit; j >= 0; j -= unit {
		p, at := i0+j, order[j]-first // units are in their natural order inside
		for r := range w.Rows {
			t.scale[r] = g.Scale(&s.blocks[r], at/g.Group)
		}
		u := &s.units[p/unit]
		t.metric = u.metric
		grad := t.grad[:unit]
		clear(grad)
		columns.Update(grad, u.transposed, unit, s.sums[j:j+unit])
		t.round(g, s.weights[at:at+unit], nil)
		for k := range unit {
			for i, v := range t.moved[k] {
				s.errs[j+k][i] = -v
			}
			for r := range w.Rows {
				s.blocks[r].Codes[at+k] = int8(t.level[k][r])
			}
		}
		// L_UU is zero above its diagonal, as all of L.
		columns.Update(s.sums[:j+unit], f.l.Data[p*f.l.Stride+i0:], f.l.Stride, s.errs[j:j+unit])
	}
	fromLanes(errs, s.errs)
	fromLanes(sums, s.sums)
}

// maxUnit is the largest unit: a group of IQ1_S.
const maxUnit = 32

// unitMetric is M, what moving a unit's columns costs: δ·M·δᵀ. Words are searched under diagonal metrics. D ≥ M with
// D_p = Σ_q |M_pq| gives one that is above the true cost everywhere: from any ŵ, the word nearest to ŵ + G·D⁻¹ under it is
// never worse (majorise and minimise). M's own diagonal gives a first guess around the target w + G·M⁻¹.
type unitMetric struct {
	n               int
	m, inverse      []float32
	diagonal, bound []kernels.Lane // M's and D, the largest being 1
	inverseOfBound  []float32      // 1/D
}

// newUnitMetric keeps m, n×n and positive definite.
func newUnitMetric(n int, m []float32) *unitMetric {
	u := &unitMetric{n: n, m: m, inverse: make([]float32, n*n), diagonal: make([]kernels.Lane, n), bound: make([]kernels.Lane, n),
		inverseOfBound: make([]float32, n)}
	bound := make([]float32, n)
	for a := range n {
		for _, v := range m[a*n : (a+1)*n] {
			bound[a] += max(v, -v)
		}
		u.inverseOfBound[a] = 1 / bound[a]
	}
	largest := slices.Max(bound)
	for a := range n {
		for i := range kernels.Lanes {
			u.diagonal[a][i], u.bound[a][i] = m[a*n+a]/largest, bound[a]/largest
		}
	}
	invert(u.inverse, m, n)
	return u
}

// invert sets dst to the inverse of m, n×n, symmetric and positive definite, by Gauss's and Jordan's elimination.
func invert(dst, m []float32, n int) {
	var a [maxUnit * 2 * maxUnit]float64
	w := 2 * n
	for i := range n {
		for j := range n {
			a[i*w+j] = float64(m[i*n+j])
		}
		a[i*w+n+i] = 1
	}
	for k := range n {
		pivot := 1 / a[k*w+k]
		for j := range w {
			a[k*w+j] *= pivot
		}
		for i := range n {
			if f := a[i*w+k]; i != k && f != 0 {
				for j := range w {
					a[i*w+j] -= f * a[k*w+j]
				}
			}
		}
	}
	for i := range n {
		for j := range n {
			dst[i*n+j] = float32(a[i*w+n+j])
		}
	}
}

// unitSteps is how many steps of majorising and minimising are taken after the first guess.
const unitSteps = 4

// unitRounder rounds a unit of 16 rows, one in each lane.
type unitRounder struct {
	rounder quant.Rounder
	metric  *unitMetric
	scale   kernels.Lane
	grad    [maxUnit]kernels.Lane // G
	level   [maxUnit]kernels.Lane // the codes
	moved   [maxUnit]kernels.Lane // δ = ŵ − values
	better  [kernels.Lanes]bool   // lanes that moved
	least   kernels.Lane          // −2·G·δ + δ·M·δ

	x, tried, step, product [maxUnit]kernels.Lane
}

// round finds codes with which −2·G·δ + δ·M·δ is small, δ = scale·code − values. codes, if they are not
// nil, are those of values, and a lane that finds nothing better keeps them.
func (t *unitRounder) round(g *quant.Lattice, values, codes []kernels.Lane) {
	u := t.metric
	n := u.n
	grad, level, moved := t.grad[:n], t.level[:n], t.moved[:n]
	x, tried, step, product := t.x[:n], t.tried[:n], t.step[:n], t.product[:n]
	var inverse kernels.Lane
	t.least = kernels.Lane{}
	for i, v := range t.scale {
		if v != 0 {
			inverse[i] = 1 / v
		}
	}
	t.better = [kernels.Lanes]bool{}
	clear(moved)
	if codes != nil {
		copy(level, codes) // values are theirs: least and moved are 0
	}
	for at := range 1 + unitSteps {
		weight := u.bound
		if at == 0 {
			weight = u.diagonal
			copy(x, values)
			columns.Update(x, u.inverse, n, grad)
		} else {
			clear(product)
			columns.Update(product, u.m, n, moved)
			for j := range x {
				for i, v := range values[j] {
					x[j][i] = v + moved[j][i] + (grad[j][i]-product[j][i])*u.inverseOfBound[j]
				}
			}
		}
		g.RoundLanes(&t.rounder, tried, x, weight, &inverse)
		for j := range step {
			for i, v := range tried[j] {
				step[j][i] = float32(t.scale[i]*v) - values[j][i]
			}
		}
		clear(product)
		columns.Update(product, u.m, n, step)
		a, b := columns.Dot(grad, step), columns.Dot(step, product)
		any := false
		for i := range t.least {
			e := b[i] - 2*a[i]
			if at == 0 && codes == nil || e < t.least[i] {
				t.least[i], t.better[i], any = e, true, true
				for j := range level {
					level[j][i], moved[j][i] = tried[j][i], step[j][i]
				}
			}
		}
		if !any && at > 0 {
			break
		}
	}
}
