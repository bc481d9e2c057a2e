package model

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/scan"
	"github.com/llmq/llmq/tensor"
)

// back is a derivative: dz is the gradient at Out's input, Norm(y ⊙ SiLU(z)).
func (m *Mamba2) back(st *State, d *Differential, h, dz, dh *tensor.Matrix) {
	all := st.apply(h, []string{"ssm in"}, m.In)[0]
	channels, wide, rows := m.Channels(), m.Groups*m.State, all.Rows
	gate := all.View(0, rows, 0, m.Inner)
	before, xbc := st.Scratch("back ssm before", rows, channels), st.Scratch("ssm xbc", rows, channels)
	st.convolve(before, all.View(0, rows, m.Inner, m.Inner+channels), m.Taps, m.TapsBias, m.Width)
	SiLU.plain(false, xbc, before)
	dt := st.columns("ssm dt", all, m.Inner+channels, m.InWidth())
	for t := range dt.Rows {
		for h, v := range dt.Row(t) {
			dt.Row(t)[h] = softplus(v + m.DtBias[h])
		}
	}
	s := scan.Mamba2{Heads: m.Heads, HeadDim: m.Inner / m.Heads, Groups: m.Groups, State: m.State, A: m.A, D: m.D}
	parts := func(xbc, dt *tensor.Matrix) *scan.Mamba2Inputs {
		of := func(lo, hi int) *tensor.Matrix { return xbc.View(0, rows, lo, hi) }
		return &scan.Mamba2Inputs{X: of(0, m.Inner), B: of(m.Inner, m.Inner+wide), C: of(m.Inner+wide, channels), Dt: dt}
	}
	in, y := parts(xbc, dt), st.Scratch("ssm y", rows, m.Inner)
	for i := 0; i < rows; i += st.SeqLen {
		part := func(x *tensor.Matrix) *tensor.Matrix { return x.View(i, i+st.SeqLen, 0, x.Cols) }
		s.Scan(part(y), part(in.X), part(in.B), part(in.C), part(in.Dt))
	}
	dy := m.normaliseBack(st, dz, y, gate)

	dAll, dxbc := st.Scratch("back ssm in", rows, all.Cols), st.Scratch("back ssm xbc", rows, channels)
	SiLU.gatedBack(dAll.View(0, rows, 0, m.Inner), dy, dy, gate, y)
	dDt := st.Scratch("back ssm dt", rows, m.Heads)
	s.Back(parts(dxbc, dDt), in, dy, st.SeqLen)
	SiLU.plainBack(dxbc, dxbc, before)
	st.convolveBack(dAll.View(0, rows, m.Inner, m.Inner+channels), dxbc, m.Taps, m.Width)
	for t := range rows {
		v, out := all.Row(t)[m.Inner+channels:], dAll.Row(t)[m.Inner+channels:]
		for h, g := range dDt.Row(t) {
			out[h] = g * float32(1/(1+math.Exp(-float64(v[h]+m.DtBias[h])))) // softplus' is σ
		}
	}
	d.back(st, m.In, dh, dAll)
}

// normaliseBack returns the gradient at y ⊙ SiLU(gate) for that at its norm by groups, dz.
func (m *Mamba2) normaliseBack(st *State, dz, y, gate *tensor.Matrix) *tensor.Matrix {
	dx := st.Scratch("back ssm y", y.Rows, y.Cols)
	if m.Norm == nil {
		copyTo(dx, 0, dz)
		return dx
	}
	x, n := st.Scratch("back ssm gated", y.Rows, y.Cols), m.Inner/m.Groups
	byRows(y.Rows, func(lo, hi int) {
		elementwise.SiLUMul(x.View(lo, hi, 0, x.Cols), gate.View(lo, hi, 0, gate.Cols), y.View(lo, hi, 0, y.Cols))
		for g := range m.Groups {
			part := Norm{W: m.Norm.W[g*n : (g+1)*n], Eps: m.Norm.Eps}
			of := func(m *tensor.Matrix) *tensor.Matrix { return m.View(lo, hi, g*n, (g+1)*n) }
			part.rowsBack(of(dx), of(x), of(dz))
		}
	})
	return dx
}
