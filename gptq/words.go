package gptq

import (
	"context"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// GPTQ on codebooks: the columns of a word are rounded as one. With s = Σ e_k·L_kU over the columns k that are done, a unit U
// of columns adds ‖e_U·L_UU + s‖² to the output error, L_UU being its own triangle of the factor. That is least at the target
//
//	t = w_U + s·L_UU⁻¹, and elsewhere (t−ŵ)·M·(t−ŵ)ᵀ, M = L_UU·L_UUᵀ.
//
// Words are searched under a diagonal metric. D ≥ M with D_p = Σ_q |M_pq| gives one that is above the true error everywhere and
// meets it at the ŵ there is: the word nearest to ŵ + (t−ŵ)·M·D⁻¹ is never worse (majorise and minimise).

// wordSteps is how many such steps are taken after rounding under M's diagonal.
const wordSteps = 4

// maxUnit is the largest unit: a group of IQ1_S.
const maxUnit = 32

// sweepWords is sweep for words.
func (f *Factor) sweepWords(ctx context.Context, q *quant.Weight, g *quant.Lattice, w *tensor.Matrix) error {
	n := w.Cols
	matrices := sync.Pool{New: func() any { return tensor.New(min(bandRows, w.Rows), n+g.Block) }}
	units := f.unitMetrics(g.Unit())
	return inBands(ctx, w.Rows, func(ctx context.Context, r0, r1 int) error {
		m := matrices.Get().(*tensor.Matrix)
		defer matrices.Put(m)
		rows := r1 - r0
		sums, errs := m.View(0, rows, 0, n), m.View(0, rows, n, n+g.Block) // as in sweep
		sums.Zero()
		for i0 := n - g.Block; i0 >= 0; i0 -= g.Block {
			if err := ctx.Err(); err != nil {
				return err
			}
			kernels.Parallel(rows, 1, func(lo, hi int) {
				s := wordSweeper{f: f, g: g, units: units, i0: i0}
				for r := lo; r < hi; r++ {
					s.row(q, w.Row(r0+r), sums.Row(r), errs.Row(r), r0+r)
				}
			})
			if i0 > 0 {
				gemm.NN(sums.View(0, rows, 0, i0), 1, errs, f.l.View(i0, i0+g.Block, 0, i0), kernels.Auto)
			}
		}
		return nil
	})
}

// unitMetric is what one unit's errors cost together.
type unitMetric struct {
	m        [maxUnit][maxUnit]float32 // M
	diagonal [maxUnit]float32          // M's
	bound    [maxUnit]float32          // D
}

// unitMetrics returns the metrics of the units at positions 0, unit, 2·unit, …
func (f *Factor) unitMetrics(unit int) []unitMetric {
	units := make([]unitMetric, len(f.order)/unit)
	kernels.Parallel(len(units), rowGrain, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			u := &units[i]
			for a := range unit {
				for b := range a + 1 {
					p := i * unit
					v := vector.Dot(f.l.Row(p + a)[p:p+b+1], f.l.Row(p + b)[p:p+b+1])
					u.m[a][b], u.m[b][a] = v, v
				}
			}
			var largest float32
			for a := range unit {
				u.diagonal[a] = u.m[a][a]
				for _, v := range u.m[a][:unit] {
					u.bound[a] += max(v, -v)
				}
				largest = max(largest, u.bound[a])
			}
			for a := range unit { // RoundGroup's weights are from 0 to 1
				u.diagonal[a] /= largest
				u.bound[a] /= largest
				for b := range unit {
					u.m[a][b] /= largest
				}
			}
		}
	})
	return units
}

// wordSweeper quantizes the block at positions [i0,i0+Block) of a row.
type wordSweeper struct {
	f     *Factor
	g     *quant.Lattice
	units []unitMetric
	i0    int

	target, importance [256]float32
}

// row quantizes the block of row r. sums and errs are the row's, by position.
func (s *wordSweeper) row(q *quant.Weight, w, sums, errs []float32, r int) {
	g, f := s.g, s.f
	order := f.order[s.i0 : s.i0+g.Block]
	first := order[0] / g.Block * g.Block
	b := q.Block(r, first/g.Block)
	for j, c := range order {
		d := f.l.Row(s.i0 + j)[s.i0+j]
		s.target[c-first], s.importance[c-first] = w[c], d*d
		if !f.opt.StaticScales {
			s.target[c-first] += sums[s.i0+j] / d
		}
	}
	blocks := [1]quant.Block{b}
	g.Fit(blocks[:], s.target[:g.Block], s.importance[:g.Block], quant.Coarse)
	b = blocks[0]
	q.SetBlock(r, first/g.Block, &b)
	unit := g.Unit()
	for j := g.Block - unit; j >= 0; j -= unit {
		p := s.i0 + j
		at := order[j] - first
		at -= at % unit
		s.unit(b.Codes[at:at+unit], w, sums, errs[j:j+unit], p, first+at, g.Scale(&b, at/g.Group))
		for k := range unit {
			vector.Axpy(sums[s.i0:p], errs[j+k], f.l.Row(p + k)[s.i0:p])
		}
	}
}

// unit rounds the unit at position p, whose columns are column and after.
func (s *wordSweeper) unit(codes []int8, w, sums, errs []float32, p, column int, scale float32) {
	n := len(codes)
	u := &s.units[p/n]
	order := s.f.order[p : p+n]
	var z [maxUnit]float32 // s·L_UU⁻¹
	var t [maxUnit]float32 // the target, by position
	for i := n - 1; i >= 0; i-- {
		v := sums[p+i]
		for k := i + 1; k < n; k++ {
			v -= z[k] * s.f.l.Row(p + k)[p+i]
		}
		z[i] = v / s.f.l.Row(p + i)[p+i]
		t[i] = w[order[i]] + z[i]
	}
	// Words go by columns.
	var x, weight [maxUnit]float32
	var tried [maxUnit]int8
	least := float32(-1)
	for step := range 1 + wordSteps {
		var lost [maxUnit]float32 // t−ŵ by position
		if step == 0 {
			for i, c := range order {
				x[c-column], weight[c-column] = t[i], u.diagonal[i]
			}
		} else {
			for i, c := range order {
				lost[i] = t[i] - scale*float32(codes[c-column])
			}
			for i, c := range order {
				x[c-column] = scale*float32(codes[c-column]) + vector.Dot(u.m[i][:n], lost[:n])/u.bound[i]
				weight[c-column] = u.bound[i]
			}
		}
		s.g.RoundGroup(tried[:n], x[:n], weight[:n], scale)
		for i, c := range order {
			lost[i] = t[i] - scale*float32(tried[c-column])
		}
		var e float32
		for i := range n {
			e += lost[i] * vector.Dot(u.m[i][:n], lost[:n])
		}
		if step > 0 && !(e < least) {
			break
		}
		least = e
		copy(codes, tried[:n])
	}
	for i, c := range order {
		errs[i] = w[c] - scale*float32(codes[c-column])
	}
}
