package model

import (
	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Attention is grouped-query attention (Ainslie et al., arXiv:2305.13245) over Heads query heads and KVHeads key and
// value heads of HeadDim features.
type Attention struct {
	Heads, KVHeads, HeadDim int
	Q, K, V, O              *Linear
	// QKV, where not nil, is Q, K and V in one: their rows follow each other.
	QKV *Linear
	// QNorm, KNorm and VNorm normalise each head, or all of them at once where they have as many weights and are not
	// PerHead; nil: none. They come before RoPE, or after it where NormAfter is set.
	QNorm, KNorm, VNorm *Norm
	NormAfter           bool
	RoPE                *RoPE // nil: none
	Window              int   // a token attends to itself and the Window−1 tokens before it; 0: to all before it
	Scale               float32
	Softcap             float32   // c: scores become c·tanh(score/c); 0: they do not
	Sinks               []float32 // by query head, a logit that takes part in the softmax and has no value; nil: none
	// Gated says that Q has, for each head, HeadDim rows of queries and HeadDim of a gate: the result is multiplied by
	// σ(gate). Gate is a linear of its own that does the same.
	Gated       bool
	Gate        *Linear
	Temperature *Temperature // of the queries; nil: 1
	// Keeps has keys and values stay in State.Aux for the layers that Take them instead of having their own: K and V are
	// nil there. nil: neither.
	Keeps, Takes *KV
}

// KV is where in State.Aux keys and values lie, as they meet the queries: from column At on, the keys first.
type KV struct{ At int }

// kvWidth is the number of features of a token's keys, and of its values.
func (a *Attention) kvWidth() int { return a.KVHeads * a.HeadDim }

// Branch is the attention with its output.
func (a *Attention) Branch() Branch {
	linears := []*Linear{a.Q, a.K, a.V}
	switch {
	case a.QKV != nil:
		linears = []*Linear{a.QKV}
	case a.Takes != nil:
		linears = linears[:1]
	case a.V == nil:
		linears = linears[:2]
	}
	if a.Gate != nil {
		linears = append(linears, a.Gate)
	}
	for _, l := range []*Linear{a.Q, a.K} {
		if l != nil && (a.V != nil || a.Takes != nil) {
			l.Product = true
		}
	}
	out := &Site{Name: "attn_out", Expert: -1, Linears: []*Linear{a.O}}
	if a.V != nil && a.VNorm == nil {
		out.Prev = &quant.Scaler{Name: a.V.Name, Row: a.valueRows()}
	}
	return Branch{
		Stages: []Stage{{
			Sites: []*Site{{Name: "attn_in", Expert: -1, Linears: linears, Shares: "attn_in"}},
			Apply: func(st *State) { st.In = a.attend(st, st.In) }, ReadsAux: a.Takes != nil,
		}},
		Out: out, Costly: true, Narrows: true, Back: a,
	}
}

// valueRows gives for each feature of the output the row of V that it is a mean of.
func (a *Attention) valueRows() []int {
	rows := make([]int, a.Heads*a.HeadDim)
	for i := range rows {
		rows[i] = i/a.HeadDim/(a.Heads/a.KVHeads)*a.HeadDim + i%a.HeadDim
	}
	return rows
}

// attend returns the attention's result for the normalised input h, of the tokens that st wants.
func (a *Attention) attend(st *State, h *tensor.Matrix) *tensor.Matrix {
	q, k, v, gate := a.project(st, h)
	dst := st.Scratch("attention", q.Rows, a.Heads*a.HeadDim)
	if st.keeping == derivative(a) && gate == nil {
		st.results[a] = a.before(st, q, k, v)
	}
	a.Attend(st, dst, q, k, v)
	if a.Keeps != nil {
		copyTo(st.Aux, a.Keeps.At, k)
		copyTo(st.Aux, a.Keeps.At+a.kvWidth(), v)
	}
	if gate != nil {
		byRows(dst.Rows, func(lo, hi int) {
			elementwise.SigmoidMul(dst.View(lo, hi, 0, dst.Cols), gate.View(lo, hi, 0, gate.Cols))
		})
	}
	st.narrow()
	return dst
}

// project returns queries and the gate, if there is one, of the tokens that st wants, and keys and values of all.
func (a *Attention) project(st *State, h *tensor.Matrix) (q, k, v, gate *tensor.Matrix) {
	queries := h
	if st.last < st.SeqLen {
		queries = st.lastOf("queries", h)
	}
	switch {
	case a.QKV != nil:
		all := st.apply(h, []string{"qkv"}, a.QKV)[0]
		n, kv := a.Heads*a.HeadDim, a.KVHeads*a.HeadDim
		if a.Gated {
			n *= 2
		}
		q, k, v = st.columns("q", all, 0, n), st.columns("k", all, n, n+kv), st.columns("v", all, n+kv, n+2*kv)
		if st.last < st.SeqLen {
			q = st.lastOf("lastq", q)
		}
	case a.Takes != nil:
		q = st.apply(queries, []string{"q"}, a.Q)[0]
		n := a.kvWidth()
		k, v = st.columns("k", st.Aux, a.Takes.At, a.Takes.At+n), st.columns("v", st.Aux, a.Takes.At+n, a.Takes.At+2*n)
	case st.last == st.SeqLen && a.V != nil && a.Gate == nil:
		r := st.apply(h, []string{"q", "k", "v"}, a.Q, a.K, a.V)
		q, k, v = r[0], r[1], r[2]
	default:
		q = st.apply(queries, []string{"q"}, a.Q)[0]
		if a.V == nil { // the keys before their norm
			k = st.apply(h, []string{"k"}, a.K)[0]
			v = st.columns("v", k, 0, k.Cols)
			break
		}
		r := st.apply(h, []string{"k", "v"}, a.K, a.V)
		k, v = r[0], r[1]
	}
	switch {
	case a.Gate != nil:
		gate = st.apply(queries, []string{"attn_gate"}, a.Gate)[0]
	case a.Gated:
		both, d := q, a.HeadDim
		q, gate = st.Scratch("queries of gated", both.Rows, a.Heads*d), st.Scratch("attn_gate", both.Rows, a.Heads*d)
		for t := range both.Rows {
			for i := range a.Heads {
				copy(q.Row(t)[i*d:(i+1)*d], both.Row(t)[2*i*d:])
				copy(gate.Row(t)[i*d:(i+1)*d], both.Row(t)[(2*i+1)*d:])
			}
		}
	}
	return q, k, v, gate
}

// copyTo sets columns of dst from at on to those of x.
func copyTo(dst *tensor.Matrix, at int, x *tensor.Matrix) {
	byRows(x.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			copy(dst.Row(t)[at:], x.Row(t))
		}
	})
}

// zero is m.Zero on several processors.
func zero(m *tensor.Matrix) {
	byRows(m.Rows, func(lo, hi int) { m.View(lo, hi, 0, m.Cols).Zero() })
}

// columns returns a copy of some columns without padding.
func (st *State) columns(name string, x *tensor.Matrix, lo, hi int) *tensor.Matrix {
	y := st.Scratch(name, x.Rows, hi-lo)
	for t := range x.Rows {
		copy(y.Row(t), x.Row(t)[lo:hi])
	}
	return y
}

// Attend sets dst to the attention's result for the outputs of Q, K and V. k and v have st.SeqLen rows for each sequence;
// q and dst as many or fewer, for its last tokens alone. It changes q, k and v.
func (a *Attention) Attend(st *State, dst, q, k, v *tensor.Matrix) {
	seqs := k.Rows / st.SeqLen
	last := q.Rows / seqs
	rope := a.RoPE.For(st.SeqLen)
	rotate := func(x *tensor.Matrix, norm *Norm, from int) { // x's first token is at position from
		byRows(x.Rows, func(lo, hi int) { a.rotate(x.View(lo, hi, 0, x.Cols), rope, norm, from+lo) })
	}
	if rope != nil {
		rope.Table(st.SeqLen) // made before it is used from several goroutines
	}
	shape := a.shape()
	for i := range seqs {
		qs, out := q.View(i*last, (i+1)*last, 0, q.Cols), dst.View(i*last, (i+1)*last, 0, dst.Cols)
		ks, vs := k.View(i*st.SeqLen, (i+1)*st.SeqLen, 0, k.Cols), v.View(i*st.SeqLen, (i+1)*st.SeqLen, 0, v.Cols)
		rotate(qs, a.QNorm, st.SeqLen-last)
		a.Temperature.apply(qs, st.SeqLen-last)
		if a.Takes == nil {
			rotate(ks, a.KNorm, 0)
			a.normalise(vs, a.VNorm)
		}
		attention.Of(&shape, out, qs, ks, vs, st.precision)
	}
}

// shape is what attention.Of takes.
func (a *Attention) shape() attention.Shape {
	return attention.Shape{Heads: a.Heads, KVHeads: a.KVHeads, KeyDim: a.HeadDim, ValueDim: a.HeadDim,
		Window: a.Window, Scale: a.Scale, Softcap: a.Softcap, Sinks: a.Sinks}
}

// rotate applies the norm of heads and RoPE, if there are any. x has no padding; its first token is at position at.
func (a *Attention) rotate(x *tensor.Matrix, rope *RoPE, norm *Norm, at int) {
	if !a.NormAfter {
		a.normalise(x, norm)
	}
	if rope != nil {
		rope.rotate(x, a.HeadDim, at)
	}
	if a.NormAfter {
		a.normalise(x, norm)
	}
}

func (a *Attention) normalise(x *tensor.Matrix, norm *Norm) {
	switch {
	case norm == nil:
	case len(norm.W) == x.Cols && !norm.PerHead:
		norm.rows(x, x)
	default:
		norm.heads(x, a.HeadDim)
	}
}
