package model

import (
	"math"

	"github.com/llmq/llmq/kernels/deltanet"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/tensor"
)

// DeltaNet is the mixer of Qwen3-Next (Yang, Kautz and Hatamizadeh, arXiv:2412.06464): queries, keys and values go through
// a short causal convolution and SiLU, then through the gated delta rule; its result is normalised for each head and
// multiplied by SiLU(Gate·x).
//
// A head's memory fades by e^g, g = A·ln(1+e^{α+DT}), with α a row of Alpha·x, and corrects itself by σ of a row of Beta·x.
type DeltaNet struct {
	deltanet.Shape
	// QKV has rows of q and k, KeyHeads·KeyDim each, and of v, Heads·ValueDim. Gate has as many as v.
	QKV, Gate *Linear
	// Alpha and Beta have a row for each head. BetaAlpha, where not nil, is both: for each key head the rows of Beta of the
	// heads that share it, then those of Alpha.
	Alpha, Beta, BetaAlpha *Linear
	// Conv has for each of QKV's rows Taps factors: of the values Taps−1 tokens before, and so on to the token's own.
	Conv  []float32
	Taps  int
	A, DT []float32 // by head
	// Eps is of the norm x/√(Σx²+Eps) of the heads of q and k.
	Eps  float32
	Norm *Norm // of ValueDim features
	O    *Linear
}

// Branch is the mixer with its output.
func (d *DeltaNet) Branch() Branch {
	linears := []*Linear{d.QKV, d.Gate, d.Alpha, d.Beta}
	if d.BetaAlpha != nil {
		linears = []*Linear{d.QKV, d.Gate, d.BetaAlpha}
	}
	return Branch{
		Stages: []Stage{{
			Sites: []*Site{{Name: "attn_in", Expert: -1, Linears: linears, Shares: "attn_in"}},
			Apply: func(st *State) { st.In = d.mix(st, st.In) },
		}},
		// The norm before the output has weights for one head, which all heads share: it takes no scaling of channels.
		Out:    &Site{Name: "attn_out", Expert: -1, Linears: []*Linear{d.O}},
		Costly: true, Narrows: true, Back: d,
	}
}

// mix returns the mixer's result for the normalised input h, of the tokens that st wants.
func (d *DeltaNet) mix(st *State, h *tensor.Matrix) *tensor.Matrix {
	var qkv, alpha, beta, both *tensor.Matrix
	if d.BetaAlpha != nil {
		r := st.apply(h, []string{"deltanet qkv", "deltanet both"}, d.QKV, d.BetaAlpha)
		qkv, both = r[0], r[1]
		alpha, beta = st.Scratch("deltanet alpha", h.Rows, d.Heads), st.Scratch("deltanet beta", h.Rows, d.Heads)
		d.part(alpha, beta, both)
	} else {
		r := st.apply(h, []string{"deltanet qkv", "deltanet alpha", "deltanet beta"}, d.QKV, d.Alpha, d.Beta)
		qkv, alpha, beta = r[0], r[1], r[2]
	}
	conv := st.Scratch("deltanet conv", qkv.Rows, qkv.Cols)
	st.convolve(conv, qkv, d.Conv, nil, d.Taps)
	byRows(conv.Rows, func(lo, hi int) {
		part := conv.View(lo, hi, 0, conv.Cols)
		elementwise.SiLU(part, part)
		d.gates(alpha.View(lo, hi, 0, d.Heads), beta.View(lo, hi, 0, d.Heads))
	})
	n := d.KeyHeads * d.KeyDim
	q, k, v := conv.View(0, conv.Rows, 0, n), conv.View(0, conv.Rows, n, 2*n), conv.View(0, conv.Rows, 2*n, conv.Cols)
	unit := d.unit()
	byRows(h.Rows, func(lo, hi int) {
		unit.heads(q.View(lo, hi, 0, n), d.KeyDim)
		unit.heads(k.View(lo, hi, 0, n), d.KeyDim)
	})
	dst := st.Scratch("deltanet", h.Rows, d.Heads*d.ValueDim)
	deltanet.Scan(&d.Shape, dst, q, k, v, alpha, beta, st.SeqLen)

	if st.last < st.SeqLen {
		h, dst = st.lastOf("deltanet input", h), st.lastOf("deltanet last", dst)
	}
	gate := st.apply(h, []string{"deltanet gate"}, d.Gate)[0]
	byRows(dst.Rows, func(lo, hi int) {
		part := dst.View(lo, hi, 0, dst.Cols)
		d.Norm.heads(part, d.ValueDim)
		elementwise.SiLUMul(part, gate.View(lo, hi, 0, gate.Cols), part)
	})
	st.narrow()
	return dst
}

// part takes the rows of BetaAlpha's result apart.
func (d *DeltaNet) part(alpha, beta, both *tensor.Matrix) {
	n := d.Heads / d.KeyHeads
	for t := range both.Rows {
		for i := range d.KeyHeads {
			copy(beta.Row(t)[i*n:(i+1)*n], both.Row(t)[2*i*n:])
			copy(alpha.Row(t)[i*n:(i+1)*n], both.Row(t)[(2*i+1)*n:])
		}
	}
}

// gates makes alpha into g, and beta into σ(beta).
func (d *DeltaNet) gates(alpha, beta *tensor.Matrix) {
	for t := range alpha.Rows {
		row := alpha.Row(t)
		for i, a := range row {
			x := float64(a) + float64(d.DT[i])
			// ln(1+e^x) without overflow
			row[i] = float32(float64(d.A[i]) * (max(x, 0) + math.Log1p(math.Exp(-math.Abs(x)))))
		}
		row = beta.Row(t)
		for i, b := range row {
			row[i] = float32(1 / (1 + math.Exp(-float64(b))))
		}
	}
}

// unit is the norm that gives heads of q and k the length 1: with n features, x/√(Σx²+ε) is x·n^−½/√(mean(x²)+ε/n).
func (d *DeltaNet) unit() *Norm {
	n := Unweighted(d.KeyDim, d.Eps/float32(d.KeyDim))
	for i := range n.W {
		n.W[i] = float32(1 / math.Sqrt(float64(d.KeyDim)))
	}
	return n
}
