package model

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Activation is the function between an MLP's linears.
type Activation int

const (
	SiLU    Activation = iota // x·σ(x)
	GELU                      // the tanh form
	ReLU2                     // max(x,0)²
	SwiGLUO                   // gpt-oss: min(g,7)·σ(1.702·min(g,7))·(clamp(u,±7)+1)
)

// gated sets dst to act(gate)·up, element by element. dst may be either. table: see Model.TableGELU.
func (f Activation) gated(table bool, dst, gate, up *tensor.Matrix) {
	byRows(dst.Rows, func(lo, hi int) {
		d, g, u := dst.View(lo, hi, 0, dst.Cols), gate.View(lo, hi, 0, gate.Cols), up.View(lo, hi, 0, up.Cols)
		switch {
		case f == SiLU:
			elementwise.SiLUMul(d, g, u)
		case f == GELU && table:
			elementwise.TableGELUMul(d, g, u)
		case f == GELU:
			elementwise.GELUMul(d, g, u)
		case f == SwiGLUO:
			elementwise.SwiGLUOMul(d, g, u)
		default:
			panic("model: no gated form of this activation")
		}
	})
}

// linearInUp says whether act(gate)·up is linear in up, so that a factor on up's rows is one on the result.
func (f Activation) linearInUp() bool { return f != SwiGLUO }

// plain sets dst to act(x), element by element. dst may be x. table: see Model.TableGELU.
func (f Activation) plain(table bool, dst, x *tensor.Matrix) {
	byRows(dst.Rows, func(lo, hi int) {
		d, s := dst.View(lo, hi, 0, dst.Cols), x.View(lo, hi, 0, x.Cols)
		switch {
		case f == SiLU:
			elementwise.SiLU(d, s)
		case f == GELU && table:
			elementwise.TableGELU(d, s)
		case f == GELU:
			elementwise.GELU(d, s)
		case f == ReLU2:
			elementwise.ReLU2(d, s)
		default:
			panic("model: no plain form of this activation")
		}
	})
}

// MLP is down(act(gate(x))·up(x)), or down(act(up(x))) without a gate. Up with twice as many rows as Down has columns,
// and no Gate, is gate and up in one: the gate's rows come first.
type MLP struct {
	Gate, Up, Down *Linear
	Act            Activation
}

// Branch is the MLP.
func (f *MLP) Branch() Branch {
	linears := []*Linear{f.Gate, f.Up}
	if f.Gate == nil {
		linears = linears[1:]
	}
	out := &Site{Name: "mlp_out", Expert: -1, Linears: []*Linear{f.Down}}
	if f.Gate != nil && f.Act.linearInUp() {
		out.Prev = &quant.Scaler{Name: f.Up.Name, Row: identity(f.Down.In)}
	}
	return Branch{
		Stages: []Stage{{
			Sites: []*Site{{Name: "mlp_in", Expert: -1, Linears: linears, Shares: "mlp_in"}},
			Apply: func(st *State) {
				if st.keeping == derivative(f) && f.Gate != nil {
					st.In = f.keptInner(st, st.In)
					return
				}
				st.In = f.inner(st, "", st.In)
			},
		}},
		Out:  out,
		Back: f,
	}
}

// inner returns the input of Down for the normalised input h, in scratch memory named after name.
func (f *MLP) inner(st *State, name string, h *tensor.Matrix) *tensor.Matrix {
	switch n := f.Down.In; {
	case f.Gate != nil:
		gate, up := scratchIn(st.passing, name+"gate", h.Rows, f.Gate.Out), st.Scratch(name+"up", h.Rows, f.Up.Out)
		applyAll(h, st.precision, []*Linear{f.Gate, f.Up}, gate, up)
		f.Act.gated(st.table, up, gate, up)
		return up
	case f.Up.Out == 2*n:
		both := st.apply(h, []string{name + "up"}, f.Up)[0]
		dst := st.Scratch(name+"gated", both.Rows, n)
		f.Act.gated(st.table, dst, both.View(0, both.Rows, 0, n), both.View(0, both.Rows, n, 2*n))
		return dst
	default:
		up := st.apply(h, []string{name + "up"}, f.Up)[0]
		f.Act.plain(st.table, up, up)
		return up
	}
}

// keptInner is inner of a gated MLP that keeps its gate and up for its derivative.
func (f *MLP) keptInner(st *State, h *tensor.Matrix) *tensor.Matrix {
	r := st.apply(h, []string{"gate", "up"}, f.Gate, f.Up)
	st.results[f] = r
	dst := st.Scratch("gated", h.Rows, f.Down.In)
	f.Act.gated(st.table, dst, r[0], r[1])
	return dst
}

func identity(n int) []int {
	rows := make([]int, n)
	for i := range rows {
		rows[i] = i
	}
	return rows
}
