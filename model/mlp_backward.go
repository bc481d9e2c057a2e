package model

import (
	"math"

	"github.com/llmq/llmq/tensor"
)

// back is Branch.Back: dz is the gradient at Down's input.
func (f *MLP) back(st *State, d *Differential, h, dz, dh *tensor.Matrix) {
	n := f.Down.In
	switch {
	case f.Gate != nil:
		r := st.apply(h, []string{"gate", "up"}, f.Gate, f.Up)
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
		for t := lo; t < hi; t++ {
			g, u, in, toGate, toUp := gate.Row(t), up.Row(t), dz.Row(t), dGate.Row(t), dUp.Row(t)
			for j, dv := range in {
				x, y, dv := float64(g[j]), float64(u[j]), float64(dv)
				if f == SwiGLUO {
					const limit, alpha = 7, 1.702
					c := min(x, limit)
					s := 1 / (1 + math.Exp(-alpha*c))
					value, slope := c*s, s*(1+alpha*c*(1-s))
					if x > limit {
						slope = 0
					}
					toGate[j] = float32(dv * slope * (max(-limit, min(y, limit)) + 1))
					if y > limit || y < -limit {
						value = 0
					}
					toUp[j] = float32(dv * value)
					continue
				}
				value, slope := f.derivative(x)
				toGate[j], toUp[j] = float32(dv*slope*y), float32(dv*value)
			}
		}
	})
}

// plainBack sets dx to the gradient at x for dz, that at act(x). dx may be x.
func (f Activation) plainBack(dx, dz, x *tensor.Matrix) {
	byRows(dz.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			in, out := x.Row(t), dx.Row(t)
			for j, dv := range dz.Row(t) {
				_, slope := f.derivative(float64(in[j]))
				out[j] = float32(float64(dv) * slope)
			}
		}
	})
}

// derivative returns act(x) and act'(x).
func (f Activation) derivative(x float64) (value, slope float64) {
	switch f {
	case SiLU:
		s := 1 / (1 + math.Exp(-x))
		return x * s, s * (1 + x*(1-s))
	case GELU:
		c := math.Sqrt(2 / math.Pi)
		s := 1 / (1 + math.Exp(-2*c*(x+0.044715*x*x*x)))
		return x * s, s + x*s*(1-s)*2*c*(1+3*0.044715*x*x)
	case ReLU2:
		v := max(x, 0)
		return v * v, 2 * v
	}
	panic("model: no derivative of this activation")
}
