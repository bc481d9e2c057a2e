package gptq

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/columns"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// wordDescent is coordinate descent on some whole blocks of words of up to 16 rows, one in each lane: see descent.
type wordDescent struct {
	rowLanes
	g       *quant.Lattice
	rounder unitRounder

	// Of the present block.
	scale          []kernels.Lane // of each group
	level          []kernels.Lane // of each column
	values, before []kernels.Lane // of each column, now and before a step
	scaled, hs     []kernels.Lane // what a scale multiplies, and that times H
}

// newWordDescent returns a descent for windows of so many columns or less.
func newWordDescent(g *quant.Lattice, columns int) *wordDescent {
	lanes := func(n int) []kernels.Lane { return make([]kernels.Lane, n) }
	return &wordDescent{rowLanes: newRowLanes(columns, g.Group), g: g, scale: lanes(g.Groups()), level: lanes(g.Block),
		values: lanes(g.Block), before: lanes(g.Block), scaled: lanes(g.Block), hs: lanes(g.Block)}
}

// block improves one block of each row, whose columns start at c0.
func (t *wordDescent) block(c0 int) int {
	g := t.g
	end := c0 + g.Block
	for i := range t.n {
		b := &t.blocks[i]
		for j, q := range b.Codes {
			t.level[j][i] = float32(q)
		}
		for k := range t.scale {
			t.scale[k][i] = g.Scale(b, k)
		}
	}
	t.decode(0, g.Block)
	lost := t.lost[c0:end]
	copy(lost, t.values)
	moved := t.super(c0)
	unit := g.Unit()
	for k := range g.Groups() {
		lo, hi := k*g.Group, (k+1)*g.Group
		before, grad := t.before[lo:hi], t.grad[c0+lo:c0+hi]
		copy(before, t.values[lo:hi])
		if t.back {
			copy(t.own, grad)
		}
		moved += t.groupScale(k, c0)
		for j := lo; j < hi; j += unit {
			moved += t.unit(j, k, c0)
		}
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

// decode computes the values of columns [lo,hi).
func (t *wordDescent) decode(lo, hi int) {
	for j := lo; j < hi; j++ {
		scale, level := &t.scale[j/t.g.Group], &t.level[j]
		for i := range level {
			t.values[j][i] = float32(scale[i] * level[i])
		}
	}
}

// super moves the blocks' D, and what the blocks' columns see.
func (t *wordDescent) super(c0 int) int {
	g := t.g
	for j := range t.scaled {
		for i := range t.n {
			t.scaled[j][i] = g.Step * float32(t.blocks[i].Sc[j/g.Group]) * t.level[j][i]
		}
	}
	return t.move(0, g.Block, c0, t.scaled, func(i int, e *quant.Quadratic) (down float32) {
		b := &t.blocks[i]
		d := b.D
		if !g.MoveBlock(b, e) {
			return 0
		}
		for k := range t.scale {
			t.scale[k][i] = g.Scale(b, k)
		}
		return d - b.D
	})
}

// groupScale moves the scales of group k, and what the group's columns see.
func (t *wordDescent) groupScale(k, c0 int) int {
	lo, hi := k*t.g.Group, (k+1)*t.g.Group
	return t.move(lo, hi, c0, t.level[lo:hi], func(i int, e *quant.Quadratic) (down float32) {
		b := &t.blocks[i]
		if !t.g.MoveGroup(b, k, e) {
			return 0
		}
		before := t.scale[k][i]
		t.scale[k][i] = t.g.Scale(b, k)
		return before - t.scale[k][i]
	})
}

// move moves what multiplies scaled in columns [lo,hi) of each row by what choose makes of the change in error: it returns how
// far it fell. The columns learn of it.
func (t *wordDescent) move(lo, hi, c0 int, scaled []kernels.Lane, choose func(i int, e *quant.Quadratic) (down float32)) int {
	grad, hs := t.grad[c0+lo:c0+hi], t.hs[lo:hi]
	clear(hs)
	t.panels.Update(hs, c0+lo, c0+lo, scaled, false)
	p, a := columns.Dot(scaled, grad), columns.Dot(scaled, hs)
	var down kernels.Lane
	moved := 0
	for i := range t.n {
		if down[i] = choose(i, &quant.Quadratic{P: float64(p[i]), A: float64(a[i])}); down[i] != 0 {
			moved++
		}
	}
	if moved == 0 {
		return 0
	}
	for j := range grad {
		for i := range down {
			grad[j][i] += down[i] * hs[j][i]
		}
	}
	t.decode(lo, hi)
	return moved
}

// unit moves the codes of the unit at column j, of group k, and what later units of the group see.
func (t *wordDescent) unit(j, k, c0 int) int {
	r := &t.rounder
	unit := t.g.Unit()
	r.metric, r.scale = t.units[(c0+j)/unit], t.scale[k]
	copy(r.grad[:unit], t.grad[c0+j:c0+j+unit])
	r.round(t.g, t.values[j:j+unit], t.level[j:j+unit])
	moved := 0
	for i := range t.n {
		if !r.better[i] {
			continue
		}
		moved++
		for c := range unit {
			t.blocks[i].Codes[j+c] = int8(r.level[c][i])
		}
	}
	if moved == 0 {
		return 0
	}
	copy(t.level[j:j+unit], r.level[:unit])
	t.decode(j, j+unit)
	lost := r.moved[:unit]
	for c := range lost {
		for i := range lost[c] {
			lost[c][i] = -lost[c][i]
		}
	}
	t.spread(c0+j, lost, c0+k*t.g.Group, c0+(k+1)*t.g.Group)
	return moved
}

// unitsOf returns the metrics of h's units.
func unitsOf(h *tensor.Matrix, unit int) []*unitMetric {
	units := make([]*unitMetric, h.Rows/unit)
	kernels.Parallel(len(units), rowGrain, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			m := make([]float32, 0, unit*unit)
			for a := range unit {
				m = append(m, h.Row(i*unit + a)[i*unit:(i+1)*unit]...)
			}
			units[i] = newUnitMetric(unit, m)
		}
	})
	return units
}
