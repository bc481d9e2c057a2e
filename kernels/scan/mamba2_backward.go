package scan

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// backChunk is how many tokens are taken together on the way back.
const backChunk = 64

// backPieces is about how many parts of the heads have gradients at B and C of their own, which are added in order.
const backPieces = 8

// Mamba2Inputs are what Mamba2.Scan takes, or the gradients there, for sequences one after the other.
type Mamba2Inputs struct{ X, B, C, Dt *tensor.Matrix }

// Back sets d to the gradients at Scan's inputs for dy, that at its result, both of sequences of seqLen tokens. No matrix of d may
// be one of in.
//
// With Λ the gradient at the state after a chunk, h the state before it, G_i the sum of dt·A up to token i, and L_ij = e^{G_i−G_j}
// for j ≤ i, the chunk's gradients are (Dao and Gu, arXiv:2405.21060, in the other direction)
//
//	dx_j = D·dy_j + dt_j·(Σ_i L_ij(C_i·B_j)dy_i + e^{G−G_j}·Λᵀ·B_j)
//	dC_i = Σ_j L_ij(dy_i·x_j)dt_j·B_j + e^{G_i}·h·dy_i
//	dB_j = dt_j·(Σ_i L_ij(dy_i·x_j)C_i + e^{G−G_j}·Λ·x_j)
//	Λ ← e^G·Λ + Σ_i e^{G_i}·C_i⊗dy_i
//
// and what dt does by itself and by the decays.
func (m *Mamba2) Back(d, in *Mamba2Inputs, dy *tensor.Matrix, seqLen int) {
	m.checkBack(d, in, dy, seqLen)
	shared := m.Heads / m.Groups // heads of a group
	pieces := min(shared, max(1, backPieces/m.Groups))
	db, dc := []*tensor.Matrix{d.B}, []*tensor.Matrix{d.C}
	for range pieces - 1 {
		db, dc = append(db, tensor.New(d.B.Rows, d.B.Cols)), append(dc, tensor.New(d.C.Rows, d.C.Cols))
	}
	d.B.Zero()
	d.C.Zero()
	kernels.Parallel(dy.Rows/seqLen*m.Groups*pieces, 1, func(lo, hi int) {
		w := newMamba2Back(m, seqLen)
		for i := lo; i < hi; i++ {
			piece, g, t0 := i%pieces, i/pieces%m.Groups, i/pieces/m.Groups*seqLen
			of := func(x *tensor.Matrix, at, width int) *tensor.Matrix {
				return x.View(t0, t0+seqLen, at*width, (at+1)*width)
			}
			for h := g*shared + piece*shared/pieces; h < g*shared+(piece+1)*shared/pieces; h++ {
				w.head(h,
					&Mamba2Inputs{of(d.X, h, m.HeadDim), of(db[piece], g, m.State), of(dc[piece], g, m.State), of(d.Dt, h, 1)},
					&Mamba2Inputs{of(in.X, h, m.HeadDim), of(in.B, g, m.State), of(in.C, g, m.State), of(in.Dt, h, 1)},
					of(dy, h, m.HeadDim))
			}
		}
	})
	for i := 1; i < pieces; i++ {
		elementwise.Add(d.B, db[i])
		elementwise.Add(d.C, dc[i])
	}
}

func (m *Mamba2) checkBack(d, in *Mamba2Inputs, dy *tensor.Matrix, seqLen int) {
	ok := m.Heads%m.Groups == 0 && seqLen > 0 && dy.Rows%seqLen == 0 && dy.Cols == m.Heads*m.HeadDim && len(m.A) == m.Heads && len(m.D) == m.Heads
	for _, x := range []*Mamba2Inputs{d, in} {
		ok = ok && x.X.Rows == dy.Rows && x.B.Rows == dy.Rows && x.C.Rows == dy.Rows && x.Dt.Rows == dy.Rows &&
			x.X.Cols == dy.Cols && x.B.Cols == m.Groups*m.State && x.C.Cols == x.B.Cols && x.Dt.Cols == m.Heads
	}
	if !ok {
		panic("scan: shapes of a recurrence do not agree")
	}
}

// mamba2Back is the work on one head at a time.
type mamba2Back struct {
	*Mamba2
	before []*tensor.Matrix // the states before each chunk
	after  *tensor.Matrix   // Λ
	// Scratch space of a chunk: tokens×State, and tokens×tokens.
	scaled, wide   *tensor.Matrix
	meet, gradient *tensor.Matrix
	decays         Decays
	sum, dg        [backChunk]float64
}

func newMamba2Back(m *Mamba2, seqLen int) *mamba2Back {
	w := &mamba2Back{Mamba2: m, after: tensor.New(m.State, m.HeadDim), scaled: tensor.New(backChunk, m.State), wide: tensor.New(backChunk, m.State),
		meet: tensor.New(backChunk, backChunk), gradient: tensor.New(backChunk, backChunk),
		decays: Decays{Pairs: tensor.New(backChunk, backChunk), Reads: make([]float64, backChunk), Writes: make([]float64, backChunk)}}
	for range (seqLen + backChunk - 1) / backChunk {
		w.before = append(w.before, tensor.New(m.State, m.HeadDim))
	}
	return w
}

// head adds to the gradients at B and C, and sets those at X and Dt, of one sequence of head h.
func (m *mamba2Back) head(h int, d, in *Mamba2Inputs, dy *tensor.Matrix) {
	n := dy.Rows
	part := func(x *tensor.Matrix, t int) *tensor.Matrix { return x.View(t, min(t+backChunk, n), 0, x.Cols) }
	parts := func(x *Mamba2Inputs, t int) *Mamba2Inputs {
		return &Mamba2Inputs{part(x.X, t), part(x.B, t), part(x.C, t), part(x.Dt, t)}
	}
	m.before[0].Zero()
	for i := range m.before[1:] {
		m.forward(h, m.before[i+1], m.before[i], parts(in, i*backChunk))
	}
	m.after.Zero()
	for i := len(m.before) - 1; i >= 0; i-- {
		t := i * backChunk
		m.chunk(h, m.before[i], parts(d, t), parts(in, t), part(dy, t))
	}
}

// sums sets m.sum to the sums of dt·A, and returns the last one.
func (m *mamba2Back) sums(h int, dt *tensor.Matrix) float64 {
	total := 0.0
	for i := range dt.Rows {
		total += float64(dt.Row(i)[0]) * float64(m.A[h])
		m.sum[i] = total
	}
	return total
}

// forward sets next to the state after a chunk that state is before.
func (m *mamba2Back) forward(h int, next, state *tensor.Matrix, in *Mamba2Inputs) {
	total := m.sums(h, in.Dt)
	copy(next.Data, state.Data)
	elementwise.Scale(next.Data, float32(math.Exp(total)))
	scaled := m.scaled.View(0, in.X.Rows, 0, m.State)
	for j := range scaled.Rows {
		copy(scaled.Row(j), in.B.Row(j))
		elementwise.Scale(scaled.Row(j), float32(math.Exp(total-m.sum[j]))*in.Dt.Row(j)[0])
	}
	var products gemm.Serial
	products.TN(next, 1, scaled, in.X)
}

// chunk takes m.after from after a chunk to before it, where the state is h.
func (m *mamba2Back) chunk(head int, h *tensor.Matrix, d, in *Mamba2Inputs, dy *tensor.Matrix) {
	n := dy.Rows
	total := m.sums(head, in.Dt)
	square := func(x *tensor.Matrix) *tensor.Matrix { return x.View(0, n, 0, n) }
	meet, gradient := square(m.meet), square(m.gradient)
	decays := Decays{Pairs: square(m.decays.Pairs), Reads: m.decays.Reads[:n], Writes: m.decays.Writes[:n]}
	scaled, wide := m.scaled.View(0, n, 0, m.State), m.wide.View(0, n, 0, m.State)
	var products gemm.Serial
	meet.Zero()
	products.NT(meet, 1, in.C, in.B)
	gradient.Zero()
	products.NT(gradient, 1, dy, in.X)
	m.fade(meet, gradient, decays.Pairs, d.Dt, in.Dt)

	// C: what its token reads of the state before, and of its chunk's tokens.
	wide.Zero()
	products.NT(wide, 1, dy, h)
	for i := range n {
		f := float32(math.Exp(m.sum[i]))
		elementwise.Scale(wide.Row(i), f)
		decays.Reads[i] = dot(in.C.Row(i), wide.Row(i))
		vector.Axpy(d.C.Row(i), 1, wide.Row(i))
		copy(scaled.Row(i), in.B.Row(i))
		elementwise.Scale(scaled.Row(i), in.Dt.Row(i)[0])
	}
	products.NN(d.C, 1, gradient, scaled)

	// B and x: what their token writes into the state after, and to its chunk's tokens.
	wide.Zero()
	products.NT(wide, 1, in.X, m.after)
	for j := range n {
		f, dt := float32(math.Exp(total-m.sum[j])), in.Dt.Row(j)[0]
		elementwise.Scale(wide.Row(j), f)
		written := dot(in.B.Row(j), wide.Row(j))
		d.Dt.Row(j)[0] += float32(written)
		decays.Writes[j] = float64(dt) * written
		copy(scaled.Row(j), in.B.Row(j))
		elementwise.Scale(scaled.Row(j), f)
	}
	d.X.Zero()
	products.NN(d.X, 1, scaled, m.after)
	products.TN(d.X, 1, meet, dy)
	products.TN(wide, 1, gradient, in.C)
	for j := range n {
		dt := in.Dt.Row(j)[0]
		elementwise.Scale(d.X.Row(j), dt)
		vector.Axpy(d.X.Row(j), m.D[head], dy.Row(j))
		vector.Axpy(d.B.Row(j), dt, wide.Row(j))
	}

	fade := math.Exp(total)
	decays.Through = fade * dot(h.Data, m.after.Data)
	decays.Back(m.dg[:n])
	for j := range n {
		d.Dt.Row(j)[0] += float32(float64(m.A[head]) * m.dg[j])
	}

	elementwise.Scale(m.after.Data, float32(fade))
	for i := range n {
		copy(scaled.Row(i), in.C.Row(i))
		elementwise.Scale(scaled.Row(i), float32(math.Exp(m.sum[i])))
	}
	products.TN(m.after, 1, scaled, dy)
}

// fade makes C·B and dy·x into their products with the decays L, pairs into what the function's terms are, and sets dDt to what dt
// does there as a factor.
func (m *mamba2Back) fade(meet, gradient, pairs, dDt, dt *tensor.Matrix) {
	var decay [backChunk]float32
	var direct [backChunk]float64
	for i := range meet.Rows {
		row := decay[:i+1]
		for j := range row {
			row[j] = float32(m.sum[i] - m.sum[j])
		}
		elementwise.ExpSum(row, row, 0)
		c, g, p := meet.Row(i), gradient.Row(i), pairs.Row(i)
		for j, f := range row {
			v := f * c[j] * g[j]
			direct[j] += float64(v)
			p[j] = v * dt.Row(j)[0]
			c[j] *= f
			g[j] *= f
		}
		clear(c[i+1:])
		clear(g[i+1:])
	}
	for j := range meet.Rows {
		dDt.Row(j)[0] = float32(direct[j])
	}
}

// dot is a·b, summed in float64.
func dot(a, b []float32) float64 {
	var sum float64
	for i, v := range a {
		sum += float64(v) * float64(b[i])
	}
	return sum
}
