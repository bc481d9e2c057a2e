// Package gptq quantizes W column by column, minimising ‖XWᵀ − XŴᵀ‖² (Frantar et al., arXiv:2210.17323): the error of
// each column is spread over the columns that are still to come, in the proportions that the inverse Hessian gives.
// Coordinate descent with the full Hessian, over codes, scales and minimums, then removes what the greedy order left.
package gptq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/llmq/llmq/internal/hugepages"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/linalg"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Options says how to quantize. The zero value is the default.
type Options struct {
	// Damping is added to the Hessian's diagonal, as a share of its mean; 0 means DefaultDamping.
	Damping float64
	// NoActOrder takes columns from left to right instead of those with the largest Hessian diagonal first.
	NoActOrder bool
	// StaticScales fits every block's scales to the original weights. By default a block is fitted when its turn comes,
	// to weights that already carry the errors of the blocks before it.
	StaticScales bool
	// Refine is the most passes of coordinate descent after GPTQ; 0 means DefaultRefine.
	Refine int
	// NoRefine leaves coordinate descent out.
	NoRefine bool
}

// Passes is the most passes of coordinate descent.
func (o *Options) Passes() int {
	if o.NoRefine {
		return 0
	}
	return cmp.Or(o.Refine, DefaultRefine)
}

const (
	// DefaultDamping is the paper's λ: 1% of the mean diagonal (section 3.3, step 3).
	DefaultDamping = 0.01
	// maxDamping ends the search for a damping with which Cholesky succeeds: past it the Hessian is only noise.
	maxDamping = 1e3
)

// Factor is what GPTQ needs to know of the inputs of a group of linears: it is computed once and serves all of them.
type Factor struct {
	// Damping is the share of the mean diagonal that was added: the one asked for, or the first tenfold of it with
	// which the Hessian was positive definite.
	Damping float64
	// Dead is the number of inputs that no calibration token excited.
	Dead int

	opt      Options
	h        *tensor.Matrix // as it was given, not damped
	diagonal []float32      // of the damped Hessian, columns in their natural order
	l        *tensor.Matrix // lower triangular, L·Lᵀ = H, damped, with its columns in order
	inverse  []float32      // 1/l's diagonal
	order    []int          // order[p] is the column at position p; the last is quantized first
	block    int            // columns of a block stay together in order; 0: they need not
	unit     int            // columns of a unit are neighbours in order

	mu      sync.Mutex
	windows map[quant.Grid][]*window   // of refine, by grid
	units   []unitTriangle             // of sweepWords, by position
	panels  map[[2]int]*columns.Panels // of sweep, by the positions of a window
	free    [][]float32                // what bands have worked in
	joints  map[quant.Grid]*joint      // of blocks of coupled rows, by grid
	packs   bool                       // many bands of few rows come: what their products share is packed once
	shared  map[packedKey]*gemm.Packed
}

// borrow returns a matrix of unspecified content for a band to work in, and what gives it back: bands come one after the other, and as
// garbage what they worked in would be as large as the Hessian.
func (f *Factor) borrow(rows, cols int) (m *tensor.Matrix, giveBack func()) {
	pitch := cols + padding
	n := rows * pitch
	var buf []float32
	f.mu.Lock()
	if i := slices.IndexFunc(f.free, func(b []float32) bool { return cap(b) >= n }); i >= 0 {
		buf = f.free[i]
		f.free = slices.Delete(f.free, i, i+1)
	}
	f.mu.Unlock()
	if buf == nil {
		buf = hugepages.Make[float32](rows * (max(cols, 2*f.h.Rows) + padding)) // for all that a band does, from its correction to descent
	}
	return tensor.FromSlice(rows, pitch, buf[:n]).View(0, rows, 0, cols), func() {
		f.mu.Lock()
		f.free = append(f.free, buf)
		f.mu.Unlock()
	}
}

// NewFactor prepares the Hessian h = Σ xxᵀ, in×in, for weights on g's grid. h is not changed, and must not
// be while the factor is in use.
func NewFactor(ctx context.Context, h *tensor.Matrix, g quant.Grid, opt Options) (*Factor, error) {
	n := h.Rows
	f := &Factor{opt: opt, h: h, diagonal: make([]float32, n), Damping: opt.Damping}
	if f.Damping == 0 {
		f.Damping = DefaultDamping
	}
	if !(f.Damping > 0) {
		return nil, fmt.Errorf("gptq: damping %v is not above 0", f.Damping)
	}
	if !opt.StaticScales {
		f.block = g.Shape().Block
	}
	diagonal := make([]float32, n)
	var mean float64
	for i := range n {
		d := h.Row(i)[i]
		if d < 0 || d-d != 0 {
			return nil, fmt.Errorf("gptq: Hessian diagonal %d is %v: the inputs overflow float32", i, d)
		}
		if d == 0 {
			f.Dead++
		}
		diagonal[i] = d
		mean += float64(d)
	}
	if f.Dead < n {
		mean /= float64(n - f.Dead)
	} else {
		mean = 1
	}
	unit := unitOf(g)
	if f.unit = unit; unit > 1 {
		f.block = g.Shape().Block
	}
	f.order = columnOrder(diagonal, f.block, unit, !opt.NoActOrder)
	slices.Reverse(f.order)
	for i := 0; unit > 1 && i < n; i += unit {
		slices.Reverse(f.order[i : i+unit]) // a unit is rounded as one: its columns stay as they are
	}
	for i, d := range diagonal {
		if d == 0 {
			// No token excites this input. Any positive value keeps H invertible; the mean keeps it well scaled.
			diagonal[i] = float32(mean)
		}
	}
	for ; f.Damping <= maxDamping; f.Damping *= 10 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for i, d := range diagonal {
			f.diagonal[i] = d + float32(f.Damping*mean)
		}
		f.l = f.permuted(f.l)
		if ok, _ := linalg.Cholesky(f.l); ok && finiteDiagonal(f.l) {
			clearUpper(f.l)
			f.inverse = make([]float32, n)
			for i := range n {
				f.inverse[i] = 1 / f.l.Row(i)[i]
			}
			return f, nil
		}
	}
	return nil, errors.New("gptq: no damping makes the Hessian positive definite")
}

// unitOf is how many columns of a grid are rounded as one.
func unitOf(g quant.Grid) int {
	if words, ok := g.(*quant.Lattice); ok {
		return words.Unit()
	}
	return 1
}

// panelsOf returns the factor at positions [i0,i1), which it packs once.
func (f *Factor) panelsOf(i0, i1 int) *columns.Panels {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := [2]int{i0, i1}
	if f.panels[key] == nil {
		if f.panels == nil {
			f.panels = map[[2]int]*columns.Panels{}
		}
		f.panels[key] = columns.NewPanels(f.l.Data[i0*f.l.Stride+i0:], f.l.Stride, i1-i0, i1-i0)
	}
	return f.panels[key]
}

// damped returns the damped Hessian of columns [c0,c1).
func (f *Factor) damped(c0, c1 int) *tensor.Matrix {
	h := newPadded(c1 - c0)
	for i, d := range f.diagonal[c0:c1] {
		row := h.Row(i)
		copy(row, f.h.Row(c0 + i)[c0:c1])
		row[i] = d
	}
	return h
}

// padding is a cache line between the rows of matrices whose columns are walked down: with a power of two from row to row, all of their
// lines would fall into the same few sets of a cache.
const padding = 16

// newPadded returns a zero n×n matrix with padding between its rows.
func newPadded(n int) *tensor.Matrix {
	return tensor.New(n, n+padding).View(0, n, 0, n)
}

// permuted sets dst, which it makes if it is nil, to the damped Hessian's lower triangle with its columns in order.
func (f *Factor) permuted(dst *tensor.Matrix) *tensor.Matrix {
	if dst == nil {
		dst = tensor.New(f.h.Rows, f.h.Rows)
	}
	kernels.Parallel(dst.Rows, rowGrain, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			src, row := f.h.Row(f.order[i]), dst.Row(i)[:i+1]
			for j, c := range f.order[:i] {
				row[j] = src[c]
			}
			row[i] = f.diagonal[f.order[i]]
		}
	})
	return dst
}

// clearUpper sets what is above the diagonal to zero.
func clearUpper(l *tensor.Matrix) {
	kernels.Parallel(l.Rows, rowGrain, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			clear(l.Row(i)[i+1:])
		}
	})
}

func finiteDiagonal(l *tensor.Matrix) bool {
	for i := range l.Rows {
		if d := float64(l.Row(i)[i]); !(d > 0) || math.IsInf(d, 0) {
			return false
		}
	}
	return true
}

// columnOrder returns the order in which columns are quantized: by falling diagonal if sorted is set, with the columns
// of a block kept together unless block is 0, and those of a unit, which are neighbours. Equal diagonals keep their natural
// order, so the result is unique.
func columnOrder(diagonal []float32, block, unit int, sorted bool) []int {
	n := len(diagonal)
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	if !sorted {
		return order
	}
	byDiagonal := func(a, b int) int {
		return cmp.Or(cmp.Compare(diagonal[b], diagonal[a]), cmp.Compare(a, b))
	}
	if block == 0 {
		slices.SortFunc(order, byDiagonal)
		return order
	}
	byLargest := func(a, b []int) int { return byDiagonal(slices.MinFunc(a, byDiagonal), slices.MinFunc(b, byDiagonal)) }
	blocks := make([][]int, 0, n/block)
	for b := 0; b < n; b += block {
		units := make([][]int, 0, block/unit)
		for cols := order[b : b+block]; len(cols) > 0; cols = cols[unit:] {
			units = append(units, cols[:unit])
		}
		slices.SortFunc(units, byLargest)
		blocks = append(blocks, slices.Concat(units...))
	}
	slices.SortFunc(blocks, byLargest)
	return slices.Concat(blocks...)
}

// Quantize rounds w, out×in, onto g's grid with the options that f was made with. f must have been made for a grid with g's block length. w is not changed.
func (f *Factor) Quantize(ctx context.Context, w *tensor.Matrix, g quant.Grid) (*quant.Weight, error) {
	block := g.Shape().Block
	if w.Cols != f.h.Rows || w.Cols%block != 0 || f.block != 0 && f.block != block || f.unit != unitOf(g) {
		panic("gptq: the factor does not fit the weight")
	}
	q := quant.NewWeight(g, w.Rows, w.Cols)
	var sweep bandStep
	switch g := g.(type) {
	case *quant.Affine:
		sweep = f.sweep(q, g, w)
	case *quant.Lattice:
		sweep = f.sweepWords(q, g, w)
	default:
		return nil, fmt.Errorf("gptq: %s is not a grid of codes or words", g)
	}
	refine := bandStep(func(context.Context, *band) error { return nil })
	if passes := f.opt.Passes(); passes > 0 && block <= maxRefineBlock {
		refine = f.refine(q, w, passes)
	}
	err := f.inBands(ctx, w.Rows, func(ctx context.Context, b *band) error {
		if err := sweep(ctx, b); err != nil {
			return err
		}
		return refine(ctx, b)
	})
	if err != nil {
		return nil, err
	}
	return q, nil
}
