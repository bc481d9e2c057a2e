package model

import (
	"math"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/scan"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Mamba2 is a state space layer (Dao and Gu, arXiv:2405.21060) of Heads heads in Groups groups, Inner features wide
// altogether. In makes, one after the other, a gate z, Inner wide; x, Inner wide, and B and C, Groups·State wide each; and
// a step dt for each head. x, B and C go through a convolution and SiLU, dt+DtBias through softplus, and all of them
// through scan.Mamba2. The output is Out·Norm(y ⊙ SiLU(z)).
type Mamba2 struct {
	Inner, Heads, Groups, State int

	In, Out        *Linear
	Taps, TapsBias []float32 // by channel of x, B and C
	Width          int
	DtBias, A, D   []float32 // by head
	// Norm normalises each group's features by themselves; its weights are those of all groups. nil: none.
	Norm *Norm
}

// InWidth is the number of features that In makes.
func (m *Mamba2) InWidth() int { return 2*m.Inner + 2*m.Groups*m.State + m.Heads }

// Channels is the number of features that go through the convolution.
func (m *Mamba2) Channels() int { return m.Inner + 2*m.Groups*m.State }

// Branch is the layer with its output.
func (m *Mamba2) Branch() Branch {
	out := &Site{Name: "ssm_out", Expert: -1, Linears: []*Linear{m.Out}}
	if m.Norm != nil {
		out.Prev = &quant.Scaler{Name: m.Norm.Name, Norm: m.Norm.W}
	}
	return Branch{
		Stages: []Stage{{
			Sites: []*Site{{Name: "ssm_in", Expert: -1, Linears: []*Linear{m.In}, Shares: "attn_in"}},
			Apply: m.apply,
		}},
		Out: out, Costly: true, Narrows: true, Back: m,
	}
}

// apply leaves the input of Out, of the tokens that st wants, in st.In.
func (m *Mamba2) apply(st *State) {
	all := st.apply(st.In, []string{"ssm in"}, m.In)[0]
	channels, wide := m.Channels(), m.Groups*m.State
	xbc, y := st.Scratch("ssm xbc", all.Rows, channels), st.Scratch("ssm y", all.Rows, m.Inner)
	st.convolve(xbc, all.View(0, all.Rows, m.Inner, m.Inner+channels), m.Taps, m.TapsBias, m.Width)
	SiLU.plain(false, xbc, xbc)
	dt := st.columns("ssm dt", all, m.Inner+channels, m.InWidth())
	byRows(dt.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			for h, v := range dt.Row(t) {
				dt.Row(t)[h] = softplus(v + m.DtBias[h])
			}
		}
	})
	s := scan.Mamba2{Heads: m.Heads, HeadDim: m.Inner / m.Heads, Groups: m.Groups, State: m.State, A: m.A, D: m.D}
	for i := 0; i < all.Rows; i += st.SeqLen {
		part := func(x *tensor.Matrix, lo, hi int) *tensor.Matrix { return x.View(i, i+st.SeqLen, lo, hi) }
		s.Scan(part(y, 0, m.Inner), part(xbc, 0, m.Inner), part(xbc, m.Inner, m.Inner+wide), part(xbc, m.Inner+wide, channels),
			part(dt, 0, m.Heads))
	}
	byRows(y.Rows, func(lo, hi int) {
		rows := y.View(lo, hi, 0, m.Inner)
		elementwise.SiLUMul(rows, all.View(lo, hi, 0, m.Inner), rows)
		m.normalise(rows)
	})
	st.leave(y)
}

// normalise applies the norm to each group of the features of y.
func (m *Mamba2) normalise(y *tensor.Matrix) {
	if m.Norm == nil {
		return
	}
	n := m.Inner / m.Groups
	for g := range m.Groups {
		part := Norm{W: m.Norm.W[g*n : (g+1)*n], Eps: m.Norm.Eps}
		group := y.View(0, y.Rows, g*n, (g+1)*n)
		part.rows(group, group)
	}
}

// softplus is ln(1+eˣ); beyond 20 that is x in float32.
func softplus(x float32) float32 {
	if x > 20 {
		return x
	}
	return float32(math.Log1p(math.Exp(float64(x))))
}
