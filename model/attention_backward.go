package model

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
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
	zero(dk)
	zero(dv)
	a.coreBack(st, q, k, v, dz, dq, dk, dv)
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

// backTile is how many queries' scores exist at a time.
const backTile = 64

// coreBack sets dq to, and adds to dk and dv, the gradients at what attention.Of takes for that at its result, do. With P the softmax and
// dP = do·Vᵀ, the scores' gradient is P∘(dP − Σ P∘dP), and the rest are products (Dao et al., arXiv:2205.14135, appendix B).
// A sink takes part in P alone.
func (a *Attention) coreBack(st *State, q, k, v, do, dq, dk, dv *tensor.Matrix) {
	n, d, shared := st.SeqLen, a.HeadDim, a.Heads/a.KVHeads
	// Products may round, the scores as they do on the way forth. Where v's rows have much in common dP's differences would be lost, but
	// the softmax does not see what all keys have alike: the mean is taken off. With a sink, which has no value, it does.
	serial := gemm.Serial{Rounds: st.precision == kernels.Auto}
	values := gemm.Serial{Rounds: serial.Rounds && a.Sinks == nil}
	if values.Rounds {
		v = centred(st, v)
	}
	// Query heads that share keys add to the same gradients, one after the other.
	kernels.Parallel(q.Rows/n*a.KVHeads, 1, func(lo, hi int) {
		scores, weights := tensor.New(min(backTile, n), n), tensor.New(min(backTile, n), n)
		for i := lo; i < hi; i++ {
			r0, kv := i/a.KVHeads*n, i%a.KVHeads
			of := func(m *tensor.Matrix, from, to, head int) *tensor.Matrix {
				return m.View(r0+from, r0+to, head*d, (head+1)*d)
			}
			for head := kv * shared; head < (kv+1)*shared; head++ {
				for t0 := 0; t0 < n; t0 += backTile {
					t1 := min(t0+backTile, n)
					first := 0
					if a.Window > 0 {
						first = max(0, t0-a.Window+1)
					}
					p, dp := weights.View(0, t1-t0, 0, t1-first), scores.View(0, t1-t0, 0, t1-first)
					serial.SetNT(p, a.Scale, of(q, t0, t1, head), of(k, first, t1, kv))
					values.SetNT(dp, 1, of(do, t0, t1, head), of(v, first, t1, kv))
					for t := range p.Rows {
						from := 0
						if a.Window > 0 {
							from = max(0, t0+t-a.Window+1-first)
						}
						a.scoresBack(p.Row(t), dp.Row(t), from, t0+t+1-first, head)
					}
					serial.SetNN(of(dq, t0, t1, head), a.Scale, dp, of(k, first, t1, kv))
					serial.TN(of(dk, first, t1, kv), a.Scale, dp, of(q, t0, t1, head))
					serial.TN(of(dv, first, t1, kv), 1, p, of(do, t0, t1, head))
				}
			}
		}
	})
}

// centred returns v less the mean of each sequence.
func centred(st *State, v *tensor.Matrix) *tensor.Matrix {
	y, n := st.Scratch("back centred", v.Rows, v.Cols), st.SeqLen
	kernels.Parallel(v.Rows/n, 1, func(lo, hi int) {
		mean := make([]float32, v.Cols)
		for i := lo; i < hi; i++ {
			clear(mean)
			for t := i * n; t < (i+1)*n; t++ {
				vector.Axpy(mean, 1/float32(n), v.Row(t))
			}
			for t := i * n; t < (i+1)*n; t++ {
				copy(y.Row(t), v.Row(t))
				vector.Axpy(y.Row(t), -1, mean)
			}
		}
	})
	return y
}

// scoresBack makes the scores p of a query with keys [from,to) into their softmax, and dp, the gradient there, into that at
// the scores before the softcap. All other keys get zeros.
func (a *Attention) scoresBack(p, dp []float32, from, to, head int) {
	clear(p[:from])
	clear(p[to:])
	clear(dp[:from])
	clear(dp[to:])
	p, dp = p[from:to], dp[from:to]
	var slope []float32 // of the softcap
	largest := float32(math.Inf(-1))
	if a.Softcap != 0 {
		slope = make([]float32, len(p))
		for j, s := range p {
			th := math.Tanh(float64(s / a.Softcap))
			p[j], slope[j] = float32(float64(a.Softcap)*th), float32(1-th*th)
		}
	}
	largest = max(largest, elementwise.Max(p))
	var sum float64
	if a.Sinks != nil {
		largest = max(largest, a.Sinks[head])
		sum = math.Exp(float64(a.Sinks[head] - largest))
	}
	sum += float64(elementwise.ExpSum(p, p, largest))
	elementwise.Scale(p, float32(1/sum))
	elementwise.SoftmaxBack(dp, p)
	for j, s := range slope {
		dp[j] *= s
	}
}
