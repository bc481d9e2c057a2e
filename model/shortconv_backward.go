package model

import (
	"github.com/llmq/llmq/kernels/scan"
	"github.com/llmq/llmq/tensor"
)

// back is a derivative: dz is the gradient at Out's input, c ⊙ conv(b⊙x).
func (s *ShortConv) back(st *State, d *Differential, h, dz, dh *tensor.Matrix) {
	n := s.Out.In
	all := st.apply(h, []string{"conv in"}, s.In)[0]
	bx, y := st.columns("conv bx", all, 0, n), st.Scratch("conv out", all.Rows, n)
	byRows(bx.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			multiply(bx.Row(t), all.Row(t)[2*n:])
		}
	})
	st.convolve(y, bx, s.Taps, nil, s.Width)
	// Factors take each other's place in the gradients: dz⊙c goes back through the convolution, dz⊙conv is c's.
	dAll, dy := st.Scratch("back conv in", all.Rows, all.Cols), bx
	byRows(dz.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			copy(dy.Row(t), dz.Row(t))
			multiply(dy.Row(t), all.Row(t)[n:2*n])
			dc := dAll.Row(t)[n : 2*n]
			copy(dc, dz.Row(t))
			multiply(dc, y.Row(t))
		}
	})
	dbx := y
	st.convolveBack(dbx, dy, s.Taps, s.Width)
	byRows(dbx.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			in, db, dx := all.Row(t), dAll.Row(t)[:n], dAll.Row(t)[2*n:]
			copy(db, dbx.Row(t))
			multiply(db, in[2*n:])
			copy(dx, dbx.Row(t))
			multiply(dx, in[:n])
		}
	})
	d.back(st, s.In, dh, dAll)
}

// convolveBack sets dx to the gradient at convolve's x for dy, that at its result, by sequence.
func (st *State) convolveBack(dx, dy *tensor.Matrix, taps []float32, width int) {
	for i := 0; i < dy.Rows; i += st.SeqLen {
		scan.ConvBack(dx.View(i, i+st.SeqLen, 0, dx.Cols), dy.View(i, i+st.SeqLen, 0, dy.Cols), taps, width)
	}
}
