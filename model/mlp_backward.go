package model

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/tensor"
)

// back is a derivative: dz is the gradient at Down's input.
func (f *MLP) back(st *State, d *Differential, h, dz, dh *tensor.Matrix) {
	n := f.Down.In
	switch {
	case f.Gate != nil:
		r, kept := st.results[f].([]*tensor.Matrix)
		if !kept {
			r = st.apply(h, []string{"gate", "up"}, f.Gate, f.Up)
		}
		f.Act.gatedBack(r[0], r[1], dz, r[0], r[1])
		d.back(st, f.Gate, dh, r[0])
		d.back(st, f.Up, dh, r[1])
	case f.Up.Out == 2*n:
		both := st.apply(h, []string{"up"}, f.Up)[0]
		gate, up := both.View(0, both.Rows, 0, n), both.View(0, both.Rows, n, 2*n)
		f.Act.gatedBack(gate, up, dz, gate, up)
		d.back(st, f.Up, dh, both)
	default:
		up := st.apply(h, []string{"up"}, f.Up)[0]
		f.Act.plainBack(up, dz, up)
		d.back(st, f.Up, dh, up)
	}
}

// gatedBack sets dGate and dUp to the gradients at gate and up for dz, that at act(gate)·up. They may be gate and up.
func (f Activation) gatedBack(dGate, dUp, dz, gate, up *tensor.Matrix) {
	byRows(dz.Rows, func(lo, hi int) {
		if f == SiLU {
			part := func(m *tensor.Matrix) *tensor.Matrix { return m.View(lo, hi, 0, m.Cols) }
			elementwise.SiLUMulBack(part(dGate), part(dUp), part(dz), part(gate), part(up))
			return
		}
		value, slope := make([]float32, dz.Cols), make([]float32, dz.Cols)
		for t := lo; t < hi; t++ {
			f.derivative(value, slope, gate.Row(t))
			u, toGate, toUp := up.Row(t), dGate.Row(t), dUp.Row(t)
			for j, dv := range dz.Row(t) {
				y := u[j]
				toUp[j] = dv * value[j]
				if f == SwiGLUO {
					if y > swigluoLimit || y < -swigluoLimit {
						toUp[j] = 0
					}
					y = max(-swigluoLimit, min(y, swigluoLimit)) + 1
				}
				toGate[j] = dv * slope[j] * y
			}
		}
	})
}

// plainBack sets dx to the gradient at x for dz, that at act(x). dx may be x.
func (f Activation) plainBack(dx, dz, x *tensor.Matrix) {
	byRows(dz.Rows, func(lo, hi int) {
		value, slope := make([]float32, dz.Cols), make([]float32, dz.Cols)
		for t := lo; t < hi; t++ {
			f.derivative(value, slope, x.Row(t))
			out := dx.Row(t)
			for j, dv := range dz.Row(t) {
				out[j] = dv * slope[j]
			}
		}
	})
}

// What elementwise.SwiGLUOMul computes with.
const swigluoLimit, swigluoAlpha = 7, 1.702

// derivative sets value to act(x), element by element, and slope to act'(x): with s = σ(a·x), the x·s that SiLU is has the slope
// s·(1 + a·x·(1−s)).
func (f Activation) derivative(value, slope, x []float32) {
	sigmoid := func(arg []float32) { // slope = σ(arg)
		for j := range slope {
			slope[j] = 1
		}
		elementwise.SigmoidMul(tensor.FromSlice(1, len(x), slope), tensor.FromSlice(1, len(x), arg))
	}
	switch f {
	case SiLU:
		sigmoid(x)
		for j, s := range slope {
			value[j], slope[j] = x[j]*s, s*(1+x[j]*(1-s))
		}
	case GELU: // x·σ(2u), as elementwise.GELU
		const c = 0.7978845608028654 // √(2/π)
		for j, v := range x {
			value[j] = 2 * c * (v + 0.044715*v*v*v)
		}
		sigmoid(value)
		for j, s := range slope {
			v := x[j]
			value[j], slope[j] = v*s, s+v*s*(1-s)*2*c*(1+3*0.044715*v*v)
		}
	case ReLU2:
		for j, v := range x {
			v = max(v, 0)
			value[j], slope[j] = v*v, 2*v
		}
	case SwiGLUO:
		for j, v := range x {
			value[j] = swigluoAlpha * min(v, swigluoLimit)
		}
		sigmoid(value)
		for j, s := range slope {
			v := min(x[j], swigluoLimit)
			value[j], slope[j] = v*s, s*(1+swigluoAlpha*v*(1-s))
			if x[j] > swigluoLimit {
				slope[j] = 0
			}
		}
	default:
		panic("model: no derivative of this activation")
	}
}
