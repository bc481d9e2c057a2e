package model

import (
	"math"

	"github.com/llmq/llmq/kernels/deltanet"
	"github.com/llmq/llmq/tensor"
)

// back is a derivative: dz is the gradient at O's input, Norm(y) ⊙ SiLU(Gate·h).
func (d *DeltaNet) back(st *State, diff *Differential, h, dz, dh *tensor.Matrix) {
	rows, n := h.Rows, d.KeyHeads*d.KeyDim
	qkv := st.apply(h, []string{"deltanet qkv"}, d.QKV)[0]
	alpha, beta := d.alphaBeta(st, h)
	slopes := d.gateSlopes(st, alpha)
	d.gates(alpha, beta)
	before, conv := st.Scratch("back deltanet before", rows, qkv.Cols), st.Scratch("deltanet conv", rows, qkv.Cols)
	st.convolve(before, qkv, d.Conv, nil, d.Taps)
	SiLU.plain(false, conv, before)
	in := &deltanet.Inputs{Q: st.columns("deltanet q", conv, 0, n), K: st.columns("deltanet k", conv, n, 2*n),
		V: conv.View(0, rows, 2*n, conv.Cols), G: alpha, Beta: beta}
	q0, k0 := st.columns("back deltanet q", conv, 0, n), st.columns("back deltanet k", conv, n, 2*n)
	unit := d.unit()
	byRows(rows, func(lo, hi int) {
		unit.heads(in.Q.View(lo, hi, 0, n), d.KeyDim)
		unit.heads(in.K.View(lo, hi, 0, n), d.KeyDim)
	})
	y := st.Scratch("deltanet", rows, d.Heads*d.ValueDim)
	deltanet.Scan(&d.Shape, y, in.Q, in.K, in.V, in.G, in.Beta, st.SeqLen)

	gate, dy := st.apply(h, []string{"deltanet gate"}, d.Gate)[0], st.Scratch("back deltanet y", rows, y.Cols)
	normed := st.columns("back deltanet normed", y, 0, y.Cols)
	byRows(rows, func(lo, hi int) { d.Norm.heads(normed.View(lo, hi, 0, normed.Cols), d.ValueDim) })
	SiLU.gatedBack(gate, dy, dz, gate, normed)
	diff.back(st, d.Gate, dh, gate)
	d.Norm.headsBack(y, dy, d.ValueDim)

	dConv := st.Scratch("back deltanet conv", rows, conv.Cols)
	to := &deltanet.Inputs{Q: st.Scratch("back deltanet dq", rows, n), K: st.Scratch("back deltanet dk", rows, n),
		V:    dConv.View(0, rows, 2*n, conv.Cols),
		G:    st.Scratch("back deltanet g", rows, d.Heads),
		Beta: st.Scratch("back deltanet beta", rows, d.Heads)}
	deltanet.Back(&d.Shape, to, in, dy, st.SeqLen)
	unit.headsBack(q0, to.Q, d.KeyDim)
	unit.headsBack(k0, to.K, d.KeyDim)
	copyTo(dConv, 0, to.Q)
	copyTo(dConv, n, to.K)
	SiLU.plainBack(dConv, dConv, before)
	st.convolveBack(qkv, dConv, d.Conv, d.Taps)
	diff.back(st, d.QKV, dh, qkv)

	for t := range rows {
		for i, b := range beta.Row(t) {
			to.G.Row(t)[i] *= slopes.Row(t)[i]
			to.Beta.Row(t)[i] *= b * (1 - b)
		}
	}
	if d.BetaAlpha == nil {
		diff.back(st, d.Alpha, dh, to.G)
		diff.back(st, d.Beta, dh, to.Beta)
		return
	}
	both := st.Scratch("deltanet both", rows, 2*d.Heads)
	share := d.Heads / d.KeyHeads
	for t := range rows {
		for i := range d.KeyHeads {
			copy(both.Row(t)[2*i*share:(2*i+1)*share], to.Beta.Row(t)[i*share:])
			copy(both.Row(t)[(2*i+1)*share:2*(i+1)*share], to.G.Row(t)[i*share:])
		}
	}
	diff.back(st, d.BetaAlpha, dh, both)
}

// alphaBeta returns the results of Alpha and Beta.
func (d *DeltaNet) alphaBeta(st *State, h *tensor.Matrix) (alpha, beta *tensor.Matrix) {
	if d.BetaAlpha == nil {
		r := st.apply(h, []string{"deltanet alpha", "deltanet beta"}, d.Alpha, d.Beta)
		return r[0], r[1]
	}
	alpha, beta = st.Scratch("deltanet alpha", h.Rows, d.Heads), st.Scratch("deltanet beta", h.Rows, d.Heads)
	d.part(alpha, beta, st.apply(h, []string{"deltanet both"}, d.BetaAlpha)[0])
	return alpha, beta
}

// gateSlopes returns the slopes of gates' g = A·ln(1+e^{α+DT}) at alpha: A·σ(α+DT).
func (d *DeltaNet) gateSlopes(st *State, alpha *tensor.Matrix) *tensor.Matrix {
	slopes := st.Scratch("back deltanet slopes", alpha.Rows, alpha.Cols)
	for t := range alpha.Rows {
		for i, a := range alpha.Row(t) {
			slopes.Row(t)[i] = float32(float64(d.A[i]) / (1 + math.Exp(-float64(a)-float64(d.DT[i]))))
		}
	}
	return slopes
}
