package gptq

import (
	"context"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

const (
	// DefaultRefine is the number of passes of coordinate descent that still paid when measured.
	DefaultRefine = 4
	// refineColumns is the number of columns that are descended along before their changes reach all others' gradients in
	// one matrix product.
	refineColumns = 512
	// maxRefineBlock is the longest block that is descended along: a window holds whole blocks, and a copy of their part of the
	// Hessian. Longer are rows of eight bits with one scale, where rounding leaves next to nothing to gain.
	maxRefineBlock = 2048
)

// refine lowers the output error by coordinate descent with the full Hessian: with everything else fixed, each block's
// super-scales, each group's scale and minimum, and each code in turn moves to its best value, for the given number of
// passes or until nothing moves.
func (f *Factor) refine(q *quant.Weight, w *tensor.Matrix, passes int) bandStep {
	n := f.h.Rows
	damping := f.damping()
	step := windowColumns(q.Grid)
	windows := f.windowsOf(q.Grid)
	descents := sync.Pool{New: func() any {
		if g, ok := q.Grid.(*quant.Lattice); ok {
			return newWordDescent(g, min(step, n))
		}
		return newDescent(q.Grid.(*quant.Affine), min(step, n))
	}}
	return func(ctx context.Context, b *band) error {
		rows := b.r1 - b.r0
		grad, room := f.gradient(q, w, damping, b)
		// Lanes that are vectors tell the window's columns all, which is half of the arithmetic of a product, but not where products round.
		byLanes := kernels.CurrentTier().Lanes() > 0 && !kernels.Auto.Rounds()
		for pass := range passes {
			var moved atomic.Int64
			for _, at := range windows {
				if err := ctx.Err(); err != nil {
					return err
				}
				lost := room.View(0, rows, 0, at.i1-at.i0)
				back := pass < passes-1 // in the last pass nobody looks back
				inLanes(rows, &descents, func(t descender, lo, hi int) {
					t.lanes().back = back && byLanes
					moved.Add(int64(improveRows(t, at, q, b.r0+lo, b.r0+hi, grad.View(lo, hi, at.i0, at.i1), lost.View(lo, hi, 0, at.i1-at.i0))))
				})
				// Changes are small beside the weights, so that bfloat16 does.
				from, to := at.i0, at.i1 // the columns that know already, or need not know
				switch {
				case !back:
					from = 0
				case !byLanes:
					addScaled(grad.View(0, rows, at.i0, at.i1), lost, damping[at.i0:])
					from, to = 0, 0
				}
				if from > 0 {
					gemm.NNSplit(grad, 1, lost, f.h.View(at.i0, at.i1, 0, n), from, to, kernels.Auto)
					continue
				}
				f.addProduct(grad, lost, false, at.i0, at.i1, to)
			}
			if moved.Load() == 0 {
				break
			}
		}
		return nil
	}
}

// damping returns what H's diagonal has more than f.h's.
func (f *Factor) damping() []float32 {
	damping := make([]float32, len(f.diagonal))
	for j, d := range f.diagonal {
		damping[j] = d - f.h.Row(j)[j]
	}
	return damping
}

// gradient returns G = (W−Ŵ)H of a swept band, half the negative gradient, which those keep up to date who change weights, and
// room for as much. damping is f.damping().
func (f *Factor) gradient(q *quant.Weight, w *tensor.Matrix, damping []float32, b *band) (grad, room *tensor.Matrix) {
	if kernels.Auto.Rounds() {
		// The residual has what bfloat16 left out of errors, which is nothing beside a step between codes, but 4% of a gradient.
		b.errors(b.residual, q, w)
		gemm.SetNN(b.room, 1, b.residual, f.h, kernels.F32)
		addScaled(b.room, b.residual, damping)
		return b.room, b.residual
	}
	// E·H is (E·L)·Lᵀ: half of the arithmetic.
	gemm.MatMulLower(b.room, b.residual, f.l)
	kernels.Parallel(b.room.Rows, rowGrain, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			dst, src := b.residual.Row(r), b.room.Row(r)
			for i, c := range f.order {
				dst[c] = src[i]
			}
		}
	})
	return b.residual, b.room
}

// errors sets dst to W−Ŵ of the band's rows.
func (b *band) errors(dst *tensor.Matrix, q *quant.Weight, w *tensor.Matrix) {
	block := q.Grid.Shape().Block
	kernels.Parallel(dst.Rows, rowGrain, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			d := dst.Row(r)
			for i := range len(d) / block {
				stored := q.Block(b.r0+r, i)
				q.Grid.Decode(d[i*block:(i+1)*block], &stored)
			}
			for j, v := range w.Row(b.r0 + r) {
				d[j] = v - d[j]
			}
		}
	})
}

// windowColumns is the number of columns of a window.
func windowColumns(g quant.Grid) int {
	block := g.Shape().Block
	return max(refineColumns, block) / block * block
}

// windowsOf returns the windows for weights on g's grid, which it makes once.
func (f *Factor) windowsOf(g quant.Grid) []*window {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.windows[g] != nil {
		return f.windows[g]
	}
	var windows []*window
	for i0, n := 0, f.h.Rows; i0 < n; i0 += windowColumns(g) {
		i1 := min(i0+windowColumns(g), n)
		at := &window{i0: i0, i1: i1, h: f.damped(i0, i1), inverse: make([]float32, i1-i0)}
		for i, d := range f.diagonal[i0:i1] {
			at.inverse[i] = 1 / d
		}
		at.panels = columns.NewPanels(at.h.Data, at.h.Stride, at.h.Rows, at.h.Cols)
		switch g := g.(type) {
		case *quant.Affine:
			at.sums = groupSums(at.h, g)
		case *quant.Lattice:
			at.units = unitsOf(at.h, g.Unit())
		}
		windows = append(windows, at)
	}
	if f.windows == nil {
		f.windows = map[quant.Grid][]*window{}
	}
	f.windows[g] = windows
	return windows
}

// addScaled sets grad += diff·diag(d).
func addScaled(grad, diff *tensor.Matrix, d []float32) {
	kernels.Parallel(grad.Rows, rowGrain, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			g := grad.Row(r)
			for j, x := range diff.Row(r) {
				g[j] += float32(x * d[j])
			}
		}
	})
}

// descender improves one block of up to 16 rows, one in each lane, and returns how many numbers moved.
type descender interface {
	lanes() *rowLanes
	block(c0 int) int // of a window's columns
}

// rowLanes are up to 16 rows of a window, one in each lane.
type rowLanes struct {
	*window
	n          int            // rows
	grad, lost []kernels.Lane // of each column: G, and what the weights have lost since the descent began
	back       bool           // G of columns that are done is wanted too
	own        []kernels.Lane // of the columns of a group, G before its own steps
	blocks     [kernels.Lanes]quant.Block
	stored     []int8 // the blocks' codes, pitch from row to row
	pitch      int
}

func newRowLanes(columns, group int) rowLanes {
	return rowLanes{grad: make([]kernels.Lane, columns), lost: make([]kernels.Lane, columns), own: make([]kernels.Lane, group)}
}

func (t *rowLanes) lanes() *rowLanes { return t }

// spread tells columns [from,to) what the columns from c on have lost.
func (t *rowLanes) spread(c int, lost []kernels.Lane, from, to int) {
	if from < to {
		t.panels.Update(t.grad[from:to], c, from, lost, false)
	}
}

// spreadBack tells the columns of the block at c0 what their own group and those after it have lost in their steps, and the columns
// before the block what all of it has.
func (t *rowLanes) spreadBack(c0, group int, inSteps, lost []kernels.Lane) {
	for lo := 0; lo < len(lost); lo += group {
		t.spread(c0+lo, inSteps[lo:], c0+lo, c0+lo+group)
	}
	t.spread(c0, lost, 0, c0)
}

// improveRows improves rows [r0,r1) of a window's columns, at most 16, and returns how many numbers moved. grad is G there, and stays
// so if t.back is set; lost receives what the weights have lost.
func improveRows(d descender, at *window, q *quant.Weight, r0, r1 int, grad, lost *tensor.Matrix) int {
	t, size := d.lanes(), q.Grid.Shape().Block
	t.window = at
	t.n = r1 - r0
	n := t.i1 - t.i0
	toLanes(t.grad[:n], grad)
	moved := 0
	for c0 := 0; c0 < n; c0 += size {
		block := (t.i0 + c0) / size
		for i := range t.n {
			t.blocks[i] = q.Block(r0+i, block)
		}
		t.stored, t.pitch = q.Codes[r0*q.Cols+block*size:], q.Cols
		moved += d.block(c0)
		for i := range t.n {
			q.SetBlock(r0+i, block, &t.blocks[i])
		}
	}
	fromLanes(lost, t.lost[:n])
	if t.back {
		fromLanes(grad, t.grad[:n])
	}
	return moved
}

// window is the part of the Hessian in which columns [i0,i1), some whole blocks, meet each other.
type window struct {
	i0, i1  int
	h       *tensor.Matrix  // damped
	panels  *columns.Panels // the same
	inverse []float32       // 1/h's diagonal
	sums    *tensor.Matrix  // h's groupSums, for codes
	units   []*unitMetric   // h's, for words
}

// groupSums returns S, groups×columns: S[k][c] = Σ h[c][j] over the columns j of group k in c's own block.
func groupSums(h *tensor.Matrix, g *quant.Affine) *tensor.Matrix {
	sums := tensor.New(g.Groups(), h.Rows)
	for c := range h.Rows {
		c0 := c / g.Block * g.Block
		for j, v := range h.Row(c)[c0 : c0+g.Block] {
			sums.Row(j / g.Group)[c] += v
		}
	}
	return sums
}

// descent is coordinate descent on some whole blocks of up to 16 rows, one in each lane.
type descent struct {
	rowLanes
	g *quant.Affine

	// Of the present block.
	level          []kernels.Lane // of each column
	scale, minimum []kernels.Lane // of each group
	sc, m          []kernels.Lane // the integers behind them
	values, before []kernels.Lane // of each column, now and before a step
	scaled, hs, hm []kernels.Lane // what a scale and a minimum multiply, times H
	unit           []kernels.Lane // ones
	changed        []uint16       // lanes of each column of a group
	moves          search.Moves   // of a group's scales and minimums; the steps are the blocks'
}

// newDescent returns a descent for windows of so many columns or less.
func newDescent(g *quant.Affine, columns int) *descent {
	lanes := func(n int) []kernels.Lane { return make([]kernels.Lane, n) }
	t := &descent{rowLanes: newRowLanes(columns, g.Group), g: g, level: lanes(g.Block),
		scale: lanes(g.Groups()), minimum: lanes(g.Groups()), sc: lanes(g.Groups()), m: lanes(g.Groups()),
		values: lanes(g.Block), before: lanes(g.Block), scaled: lanes(g.Block), hs: lanes(g.Block), hm: lanes(g.Block),
		unit: lanes(g.Group), changed: make([]uint16, g.Group),
	}
	for j := range t.unit {
		for i := range t.unit[j] {
			t.unit[j][i] = 1
		}
	}
	return t
}

// block improves one block of each row, whose columns start at c0.
func (t *descent) block(c0 int) int {
	g := t.g
	end := c0 + g.Block
	t.load()
	lost := t.lost[c0:end]
	copy(lost, t.values)
	moved := 0
	if g.Scales.Floats == nil {
		moved = t.super(c0)
	}
	for k := range g.Groups() {
		lo, hi := k*g.Group, (k+1)*g.Group
		before, grad := t.before[lo:hi], t.grad[c0+lo:c0+hi]
		copy(before, t.values[lo:hi])
		if t.back {
			copy(t.own, grad)
		}
		if g.Scales.OfGroups() {
			moved += t.scales(k, c0)
		}
		moved += t.codes(k, c0)
		columns.Subtract(before, t.values[lo:hi])
		if t.back {
			copy(grad, t.own)
		}
		t.spread(c0+lo, before, c0+hi, end)
	}
	columns.Subtract(lost, t.values)
	t.spread(c0, lost, end, t.h.Rows)
	if t.back {
		t.spreadBack(c0, g.Group, t.before, lost)
	}
	return moved
}

// load brings the blocks into the lanes.
func (t *descent) load() {
	g := t.g
	if g.Codebook == nil {
		columns.FromCodes(t.level, t.stored, t.pitch, t.n)
	}
	for i := range t.n {
		b := &t.blocks[i]
		t.moves.Step[i], t.moves.StepMinimum[i] = b.D, b.DMin
		if g.Codebook != nil {
			for j, code := range b.Codes {
				t.level[j][i] = g.Level(code)
			}
		}
		for k := range t.scale {
			t.scale[k][i], t.minimum[k][i] = g.Scale(b, k)
			t.sc[k][i], t.m[k][i] = float32(b.Sc[k]), float32(b.M[k])
		}
	}
	for k := range t.scale {
		t.decode(k)
	}
}

// decode computes the values of group k from its levels.
func (t *descent) decode(k int) {
	lo, hi := k*t.g.Group, (k+1)*t.g.Group
	columns.Decode(t.values[lo:hi], t.level[lo:hi], &t.scale[k], &t.minimum[k])
}

// codes moves the codes of group k, and what later columns of the group see.
func (t *descent) codes(k, c0 int) int {
	g := t.g
	lo, hi := k*g.Group, (k+1)*g.Group
	moved := 0
	lost, levels := t.hs, t.scaled // free by now
	for m0 := lo; m0 < hi; m0 += eagerColumns {
		m1 := min(m0+eagerColumns, hi)
		if g.Codebook == nil {
			columns.RoundInTurn(levels[m0:m1], lost[m0:m1], t.values[m0:m1], t.grad[c0+m0:c0+m1], t.inverse[c0+m0:],
				t.h.Data[(c0+m0)*(t.h.Stride+1):], t.h.Stride, t.scale[k:], t.minimum[k:], &oneGroup, int8(g.CodeMin), int8(g.CodeMax), false)
		} else {
			for j := m0; j < m1; j++ {
				row := t.h.Row(c0 + j)
				t.round(&levels[j], &lost[j], j, k, &t.grad[c0+j], t.inverse[c0+j])
				columns.Update(t.grad[c0+j+1:c0+m1], row[c0+j+1:], 0, lost[j:j+1])
			}
		}
		t.spread(c0+m0, lost[m0:m1], c0+m1, c0+hi)
	}
	columns.Differ(t.changed, t.level[lo:hi], levels[lo:hi])
	for c, lanes := range t.changed {
		j := lo + c
		for lanes &= 1<<t.n - 1; lanes != 0; lanes &= lanes - 1 {
			i := bits.TrailingZeros16(lanes)
			t.level[j][i] = levels[j][i]
			t.blocks[i].Codes[j] = t.code(levels[j][i])
			moved++
		}
	}
	t.decode(k)
	return moved
}

// oneGroup says that all columns are of the same group.
var oneGroup [eagerColumns]int

// code returns the code of a level.
func (t *descent) code(level float32) int8 {
	if t.g.Codebook == nil {
		return int8(level)
	}
	return t.g.NearestLevel(level)
}

// round finds the levels of a codebook with which column j's error is least, and what the column then loses.
func (t *descent) round(level, lost *kernels.Lane, j, k int, grad *kernels.Lane, inverse float32) {
	g := t.g
	for i, v := range t.values[j] {
		scale, minimum := t.scale[k][i], t.minimum[k][i]
		level[i] = g.Level(g.Nearest(v+float32(inverse*grad[i]), scale, minimum))
		lost[i] = v - (float32(scale*level[i]) - minimum)
	}
}

// scales moves the scales and the minima of group k, and what the group's own columns see.
func (t *descent) scales(k, c0 int) int {
	g := t.g
	lo, hi := k*g.Group, (k+1)*g.Group
	level, grad, hs, sums := t.level[lo:hi], t.grad[c0+lo:c0+hi], t.hs[lo:hi], t.sums.Row(k)[c0+lo:c0+hi]
	clear(hs)
	t.panels.Update(hs, c0+lo, c0+lo, level, false)
	p, q := columns.Dot(level, grad), columns.Dot(t.unit, grad)
	a, b := columns.Dot(level, hs), columns.Dot(t.unit, hs)
	var c float64
	for _, v := range sums {
		c += float64(v)
	}
	var moved uint16
	if g.Scales.Floats == nil {
		e := &t.moves
		e.P, e.Q, e.A, e.B, e.Scale, e.Minimum = p, q, a, b, t.sc[k], t.m[k]
		moved = g.MoveGroups(e, c) & (1<<t.n - 1)
		for lanes := moved; lanes != 0; lanes &= lanes - 1 {
			i := bits.TrailingZeros16(lanes)
			t.blocks[i].Sc[k], t.blocks[i].M[k] = int8(e.Scale[i]), int8(e.Minimum[i])
		}
	} else {
		for i := range t.n {
			if g.MoveFloat(&t.blocks[i], k, &quant.Quadratic{P: float64(p[i]), A: float64(a[i])}) {
				moved |= 1 << i
			}
		}
	}
	if moved == 0 {
		return 0
	}
	var x, y kernels.Lane // what is taken off the scales and the minima
	for lanes := moved; lanes != 0; lanes &= lanes - 1 {
		i := bits.TrailingZeros16(lanes)
		blk := &t.blocks[i]
		scale, minimum := g.Scale(blk, k)
		x[i], y[i] = t.scale[k][i]-scale, t.minimum[k][i]-minimum
		t.scale[k][i], t.minimum[k][i] = scale, minimum
		t.sc[k][i], t.m[k][i] = float32(blk.Sc[k]), float32(blk.M[k])
	}
	columns.ShiftBy(grad, hs, &x, sums, &y) // hm = H·1 is one value for all lanes
	t.decode(k)
	return bits.OnesCount16(moved)
}

// super moves the blocks' scales and minima, which multiply those of their groups, and what the blocks' columns see.
func (t *descent) super(c0 int) int {
	g := t.g
	grad := t.grad[c0 : c0+g.Block]
	var zero kernels.Lane
	for k := range t.sc {
		lo, hi := k*g.Group, (k+1)*g.Group
		columns.Decode(t.scaled[lo:hi], t.level[lo:hi], &t.sc[k], &zero)
	}
	clear(t.hs)
	t.panels.Update(t.hs, c0, c0, t.scaled, false)
	p, a := columns.Dot(t.scaled, grad), columns.Dot(t.scaled, t.hs)
	var q, b, c kernels.Lane
	if g.HasMinimum() {
		clear(t.hm)
		columns.Update(t.hm, t.sums.Data[c0:], t.sums.Stride, t.m)
		b = columns.Dot(t.scaled, t.hm)
		for k := range t.m {
			lo, hi := k*g.Group, (k+1)*g.Group
			gs, hs := columns.Dot(t.unit, grad[lo:hi]), columns.Dot(t.unit, t.hm[lo:hi])
			for i, m := range t.m[k] {
				q[i] += m * gs[i]
				c[i] += m * hs[i]
			}
		}
	}
	var x, y kernels.Lane // what is taken off
	moved := 0
	for i := range t.n {
		blk := &t.blocks[i]
		e := quant.Quadratic{P: float64(p[i]), Q: -float64(q[i]), A: float64(a[i]), B: -float64(b[i]), C: float64(c[i])}
		d, dmin := blk.D, blk.DMin
		if !g.MoveBlock(blk, &e) {
			continue
		}
		moved++
		x[i], y[i] = d-blk.D, dmin-blk.DMin
		t.moves.Step[i], t.moves.StepMinimum[i] = blk.D, blk.DMin
		for k := range t.scale {
			t.scale[k][i], t.minimum[k][i] = g.Scale(blk, k)
		}
	}
	if moved == 0 {
		return 0
	}
	columns.Shift(grad, t.hs, &x, t.hm, &y)
	for k := range t.scale {
		t.decode(k)
	}
	return moved
}
