package scan

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/tensor"
)

// Mamba2 is the recurrence of Mamba-2 (Dao and Gu, arXiv:2405.21060): of each head a state h, State×HeadDim, which
// begins as zeros, and for each token
//
//	h ← e^{dt·A}·h + dt·B⊗x,  y = Cᵀ·h + D·x.
//
// Consecutive heads share the B and C of a group.
type Mamba2 struct {
	Heads, HeadDim, Groups, State int
	A, D                          []float32 // by head
}

// chunk is how many tokens are taken together: within a chunk, tokens meet as in attention, with weights that decay; from
// chunk to chunk the state goes on. 64 is the length at which products of both kinds are of like size for usual heads.
const chunk = 64

// Scan sets dst to y for one sequence: x and dst are tokens×(Heads·HeadDim), b and c tokens×(Groups·State), dt
// tokens×Heads and not negative. dst must not be x.
func (m *Mamba2) Scan(dst, x, b, c, dt *tensor.Matrix) {
	wide, narrow := m.Heads*m.HeadDim, m.Groups*m.State
	if m.Heads%m.Groups != 0 || x.Cols != wide || dst.Cols != wide || b.Cols != narrow || c.Cols != narrow || dt.Cols != m.Heads ||
		dst.Rows != x.Rows || b.Rows != x.Rows || c.Rows != x.Rows || dt.Rows != x.Rows || len(m.A) != m.Heads || len(m.D) != m.Heads {
		panic("scan: shapes of a recurrence do not agree")
	}
	kernels.Parallel(m.Heads, 1, func(lo, hi int) {
		s := &mamba2{Mamba2: m, state: tensor.New(m.State, m.HeadDim), scaled: tensor.New(chunk, m.State), weights: tensor.New(chunk, chunk)}
		for h := lo; h < hi; h++ {
			s.state.Zero()
			for t := 0; t < x.Rows; t += chunk {
				s.chunk(h, t, min(t+chunk, x.Rows), dst, x, b, c, dt)
			}
		}
	})
}

// mamba2 is the work on one head.
type mamba2 struct {
	*Mamba2
	state *tensor.Matrix
	// Scratch space of a chunk: its C or B times a factor, and what its tokens weigh for each other.
	scaled, weights *tensor.Matrix
	// sum[i] is the sum of dt·A over the chunk's tokens up to i, dt[i] the token's own, and decay the exponentials' scratch space.
	sum       [chunk]float64
	dt, decay [chunk]float32
}

// chunk computes tokens [t0,t1) of head h, and takes the state there.
func (m *mamba2) chunk(h, t0, t1 int, dst, x, b, c, dt *tensor.Matrix) {
	n, g := t1-t0, h/(m.Heads/m.Groups)
	xs, ys := x.View(t0, t1, h*m.HeadDim, (h+1)*m.HeadDim), dst.View(t0, t1, h*m.HeadDim, (h+1)*m.HeadDim)
	bs, cs := b.View(t0, t1, g*m.State, (g+1)*m.State), c.View(t0, t1, g*m.State, (g+1)*m.State)
	total, dts := 0.0, m.dt[:n]
	for i := range n {
		dts[i] = dt.Row(t0 + i)[h]
		total += float64(dts[i]) * float64(m.A[h])
		m.sum[i] = total
	}
	// What the state before the chunk gives: e^{sum_i}·C_i·h.
	scaled, weights := m.scaled.View(0, n, 0, m.State), m.weights.View(0, n, 0, n)
	for i := range n {
		elementwise.ScaleTo(scaled.Row(i), cs.Row(i), float32(math.Exp(m.sum[i])))
		elementwise.ScaleTo(ys.Row(i), xs.Row(i), m.D[h])
	}
	gemm.NN(ys, 1, scaled, m.state, kernels.F32)
	// What the chunk's tokens give each other: Σ_{j≤i} e^{sum_i−sum_j}·(C_i·B_j)·dt_j·x_j.
	weights.Zero()
	gemm.NT(weights, 1, cs, bs)
	for i := range n {
		row, decay := weights.Row(i), m.decay[:i+1]
		elementwise.Decays(decay, m.sum[:i+1], m.sum[i])
		elementwise.ScaleMul(decay, decay, dts[:i+1], 1)
		elementwise.ScaleMul(row[:i+1], row[:i+1], decay, 1)
		clear(row[i+1:])
	}
	gemm.NN(ys, 1, weights, xs, kernels.F32)
	// The state after it: e^{sum}·h + Σ_j e^{sum−sum_j}·dt_j·B_j⊗x_j.
	elementwise.Scale(m.state.Data, float32(math.Exp(total)))
	for j := range n {
		elementwise.ScaleTo(scaled.Row(j), bs.Row(j), float32(math.Exp(total-m.sum[j]))*dts[j])
	}
	gemm.TN(m.state, 1, scaled, xs, kernels.F32)
}
