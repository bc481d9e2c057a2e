package model

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// back is a derivative: dz is the gradient at O's input.
func (a *Attention) back(st *State, d *Differential, h, dz, dh *tensor.Matrix) {
	rope := a.RoPE.For(st.SeqLen)
	if rope != nil {
		rope.Table(st.SeqLen)
	}
	met, kept := st.results[a].(*heads)
	var gate *tensor.Matrix
	if !kept {
		var q, k, v *tensor.Matrix
		q, k, v, gate = a.project(st, h)
		met = a.before(st, q, k, v)
		a.meet(st, q, k, v)
	}
	q, k, v := met.q, met.k, met.v
	if gate != nil {
		dz = a.gateBack(st, d, q, k, v, gate, dz, h, dh)
	}
	dq, dk, dv := st.Scratch("back dq", q.Rows, q.Cols), st.Scratch("back dk", k.Rows, k.Cols), st.Scratch("back dv", v.Rows, v.Cols)
	shape := a.shape()
	attention.Back(&shape, st.SeqLen, dq, dk, dv, q, k, v, dz, st.precision)
	n := a.kvWidth()
	if a.Takes != nil {
		addColumns(d.aux.View(0, dk.Rows, a.Takes.At, a.Takes.At+n), dk)
		addColumns(d.aux.View(0, dv.Rows, a.Takes.At+n, a.Takes.At+2*n), dv)
	}
	if a.Keeps != nil { // later layers have their share in these keys and values; what came before this layer has none
		for i, m := range []*tensor.Matrix{dk, dv} {
			aux := d.aux.View(0, m.Rows, a.Keeps.At+i*n, a.Keeps.At+(i+1)*n)
			addColumns(m, aux)
			aux.Zero()
		}
	}
	if a.Temperature != nil {
		for t := range dq.Rows {
			a.Temperature.apply(dq.View(t, t+1, 0, dq.Cols), t%st.SeqLen)
		}
	}
	a.rotateBack(st, dq, met.q0, a.QNorm, rope)
	if a.Takes == nil {
		a.rotateBack(st, dk, met.k0, a.KNorm, rope)
		a.normaliseBack(dv, met.v0, a.VNorm)
	}
	a.projectBack(st, d, dq, dk, dv, dh)
}

// heads are queries, keys and values as they meet, and what norms of heads have seen of them: derivatives need both.
type heads struct{ q, k, v, q0, k0, v0 *tensor.Matrix }

// before returns heads of the outputs of Q, K and V, which are about to be made what meets.
func (a *Attention) before(st *State, q, k, v *tensor.Matrix) *heads {
	rope := a.RoPE.For(st.SeqLen)
	h := &heads{q, k, v, a.beforeNorm(st, "q", q, a.QNorm, rope), a.beforeNorm(st, "k", k, a.KNorm, rope), v}
	if a.VNorm != nil {
		h.v0 = st.columns("back v", v, 0, v.Cols)
	}
	return h
}

// beforeNorm returns a copy of what a norm of heads is about to see of x, the output of a linear: x itself without one.
func (a *Attention) beforeNorm(st *State, name string, x *tensor.Matrix, norm *Norm, rope *RoPE) *tensor.Matrix {
	if norm == nil || name == "k" && a.Takes != nil {
		return x
	}
	y := st.columns("back "+name, x, 0, x.Cols)
	if a.NormAfter && rope != nil {
		a.bySequence(st, y, func(part *tensor.Matrix, from int) { rope.rotate(part, a.HeadDim, from) })
	}
	return y
}

// meet makes of the outputs of Q, K and V, of whole sequences, what attention.Of takes.
func (a *Attention) meet(st *State, q, k, v *tensor.Matrix) {
	rope := a.RoPE.For(st.SeqLen)
	a.bySequence(st, q, func(x *tensor.Matrix, from int) {
		a.rotate(x, rope, a.QNorm, from)
		a.Temperature.apply(x, from)
	})
	if a.Takes != nil {
		return
	}
	a.bySequence(st, k, func(x *tensor.Matrix, from int) { a.rotate(x, rope, a.KNorm, from) })
	a.bySequence(st, v, func(x *tensor.Matrix, _ int) { a.normalise(x, a.VNorm) })
}

// bySequence calls f for parts of x's sequences, the first token of which is at position from.
func (a *Attention) bySequence(st *State, x *tensor.Matrix, f func(part *tensor.Matrix, from int)) {
	kernels.Parallel(x.Rows/st.SeqLen, 1, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			f(x.View(i*st.SeqLen, (i+1)*st.SeqLen, 0, x.Cols), 0)
		}
	})
}

// rotateBack takes the gradient at turned and normalised heads to that at the linear's output. x is what the norm saw.
func (a *Attention) rotateBack(st *State, dx, x *tensor.Matrix, norm *Norm, rope *RoPE) {
	if a.NormAfter {
		a.normaliseBack(dx, x, norm)
	}
	if rope != nil {
		cos, sin := rope.Table(st.SeqLen)
		inverse := tensor.New(st.SeqLen, sin.Cols) // turning by the opposite angle is the transposed matrix
		for t := range inverse.Rows {
			for j, s := range sin.Row(t) {
				inverse.Row(t)[j] = -s
			}
		}
		a.bySequence(st, dx, func(part *tensor.Matrix, _ int) {
			elementwise.RoPE(part, a.HeadDim, cos.View(0, st.SeqLen, 0, cos.Cols), inverse, rope.Style)
		})
	}
	if !a.NormAfter {
		a.normaliseBack(dx, x, norm)
	}
}

func (a *Attention) normaliseBack(dx, x *tensor.Matrix, norm *Norm) {
	switch {
	case norm == nil:
	case len(norm.W) == x.Cols && !norm.PerHead:
		norm.back(dx, x, dx)
	default:
		norm.headsBack(x, dx, a.HeadDim)
	}
}

// gateBack returns the gradient at the attention's result for that at its product with σ(gate), and passes on the gate's.
// A gate that Q makes is in q's gradient: it stays in scratch memory for projectBack.
func (a *Attention) gateBack(st *State, d *Differential, q, k, v, gate, dz, h, dh *tensor.Matrix) *tensor.Matrix {
	y := st.Scratch("back attention", dz.Rows, dz.Cols)
	shape := a.shape()
	for r := 0; r < y.Rows; r += st.SeqLen {
		of := func(m *tensor.Matrix) *tensor.Matrix { return m.View(r, r+st.SeqLen, 0, m.Cols) }
		attention.Of(&shape, of(y), of(q), of(k), of(v), st.precision)
	}
	dy, dGate := st.Scratch("back gated", dz.Rows, dz.Cols), st.Scratch("back gate", dz.Rows, dz.Cols)
	byRows(dz.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			g, in, out, o := gate.Row(t), dz.Row(t), dy.Row(t), y.Row(t)
			for j, v := range g {
				s := float32(1 / (1 + math.Exp(-float64(v))))
				out[j] = in[j] * s
				dGate.Row(t)[j] = in[j] * o[j] * s * (1 - s)
			}
		}
	})
	if a.Gate != nil {
		d.back(st, a.Gate, dh, dGate)
	}
	return dy
}

// projectBack passes on the gradients at the outputs of the linears that make queries, keys and values.
func (a *Attention) projectBack(st *State, d *Differential, dq, dk, dv, dh *tensor.Matrix) {
	if a.Gated {
		n := a.HeadDim
		dGate := st.Scratch("back gate", dq.Rows, dq.Cols)
		both := st.Scratch("back queries and gate", dq.Rows, 2*dq.Cols)
		for t := range dq.Rows {
			for i := range a.Heads {
				copy(both.Row(t)[2*i*n:], dq.Row(t)[i*n:(i+1)*n])
				copy(both.Row(t)[(2*i+1)*n:], dGate.Row(t)[i*n:(i+1)*n])
			}
		}
		dq = both
	}
	if a.QKV != nil {
		all := st.Scratch("back qkv", dq.Rows, a.QKV.Out)
		copyTo(all, 0, dq)
		copyTo(all, dq.Cols, dk)
		copyTo(all, dq.Cols+dk.Cols, dv)
		d.back(st, a.QKV, dh, all)
		return
	}
	d.back(st, a.Q, dh, dq)
	switch {
	case a.Takes != nil:
	case a.V == nil: // values are the keys before their norm
		addColumns(dk, dv)
		d.back(st, a.K, dh, dk)
	default:
		d.back(st, a.K, dh, dk)
		d.back(st, a.V, dh, dv)
	}
}

// addColumns sets dst += x.
func addColumns(dst, x *tensor.Matrix) {
	byRows(dst.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			vector.Axpy(dst.Row(t), 1, x.Row(t))
		}
	})
}
