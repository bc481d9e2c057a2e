package deltanet

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/scan"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// backChunk is how many tokens are taken together on the way back.
const backChunk = 64

// Inputs are what Scan takes, or the gradients there.
type Inputs struct{ Q, K, V, G, Beta *tensor.Matrix }

// Back sets d to the gradients at Scan's inputs for do, that at its result. No matrix of d may be one of in.
//
// With Λ the gradient at the memory after a chunk, S the memory before it, L_ts = e^{G_t−G_s} for s ≤ t, and u_t = β_t·e_t, the
// gradients w at u solve the transposed system, from the last token to the first, and everything else is matrix products:
//
//	w_s = Σ_{t≥s} scale·L_ts(q_t·k_s)·do_t + e^{G−G_s}·Λᵀk_s − Σ_{t>s} L_ts(k_t·k_s)·z_t,  z_t = dv_t = β_t·w_t,  dβ_t = w_t·e_t
//	dq_t = scale·(e^{G_t}·S·do_t + Σ_{s≤t} L_ts(do_t·u_s)·k_s)
//	dk_t = e^{G−G_t}·Λ·u_t − e^{G_t}·S·z_t + Σ_{r≥t} scale·L_rt(do_r·u_t)·q_r − Σ_{r>t} L_rt(z_r·u_t)·k_r − Σ_{s<t} L_ts(z_t·u_s)·k_s
//	Λ ← e^G·Λ + Σ_t e^{G_t}·(scale·q_t·do_tᵀ − k_t·z_tᵀ)
func Back(s *Shape, d, in *Inputs, do *tensor.Matrix, seqLen int) {
	check(s, do, in.Q, in.K, in.V, in.G, in.Beta, seqLen)
	check(s, do, d.Q, d.K, d.V, d.G, d.Beta, seqLen)
	d.Q.Zero()
	d.K.Zero()
	// Heads that share a head of q and k add to the same gradients, one after the other.
	kernels.Parallel(do.Rows/seqLen*s.KeyHeads, 1, func(lo, hi int) {
		w := newBack(s, seqLen)
		for i := lo; i < hi; i++ {
			kh, t0 := i%s.KeyHeads, i/s.KeyHeads*seqLen
			of := func(m *tensor.Matrix, head, dim int) *tensor.Matrix {
				return m.View(t0, t0+seqLen, head*dim, (head+1)*dim)
			}
			for h := range s.Heads {
				if s.keyHead(h) != kh {
					continue
				}
				part := func(x *Inputs) *Inputs {
					return &Inputs{of(x.Q, kh, s.KeyDim), of(x.K, kh, s.KeyDim), of(x.V, h, s.ValueDim), of(x.G, h, 1), of(x.Beta, h, 1)}
				}
				w.head(part(d), part(in), of(do, h, s.ValueDim))
			}
		}
	})
}

// back is the work on one head at a time.
type back struct {
	*Shape
	before []*tensor.Matrix // the memories before each chunk
	after  *tensor.Matrix   // Λ
	space  space
}

// space is scratch space for a chunk.
type space struct {
	e, u, w, z *tensor.Matrix // tokens×ValueDim
	keys       *tensor.Matrix // tokens×KeyDim
	// Tokens×tokens: L, its products with scores of keys and of queries, and with do·u and −z·u.
	fade, ofKey, ofQuery, read, held *tensor.Matrix
	pairs                            *tensor.Matrix // as scan.Decays has them
	sums, reads, writes, dg          []float64      // sums are G_t
}

func newSpace(n, keyDim, valueDim int) space {
	tall := func() *tensor.Matrix { return tensor.New(n, valueDim) }
	square := func() *tensor.Matrix { return tensor.New(n, n) }
	values := func() []float64 { return make([]float64, n) }
	return space{tall(), tall(), tall(), tall(), tensor.New(n, keyDim), square(), square(), square(), square(), square(), square(),
		values(), values(), values(), values()}
}

// first is the space of a chunk of n tokens.
func (s *space) first(n int) space {
	tall := func(m *tensor.Matrix) *tensor.Matrix { return m.View(0, n, 0, m.Cols) }
	square := func(m *tensor.Matrix) *tensor.Matrix { return m.View(0, n, 0, n) }
	return space{tall(s.e), tall(s.u), tall(s.w), tall(s.z), tall(s.keys),
		square(s.fade), square(s.ofKey), square(s.ofQuery), square(s.read), square(s.held), square(s.pairs),
		s.sums[:n], s.reads[:n], s.writes[:n], s.dg[:n]}
}

func newBack(s *Shape, seqLen int) *back {
	b := &back{Shape: s, after: tensor.New(s.KeyDim, s.ValueDim), space: newSpace(min(backChunk, seqLen), s.KeyDim, s.ValueDim)}
	for range (seqLen + backChunk - 1) / backChunk {
		b.before = append(b.before, tensor.New(s.KeyDim, s.ValueDim))
	}
	return b
}

// head adds to the gradients at q and k, and sets the others, of one sequence of one head.
func (b *back) head(d, in *Inputs, do *tensor.Matrix) {
	part := func(m *tensor.Matrix, i int) *tensor.Matrix {
		return m.View(i*backChunk, min((i+1)*backChunk, do.Rows), 0, m.Cols)
	}
	parts := func(x *Inputs, i int) *Inputs {
		return &Inputs{part(x.Q, i), part(x.K, i), part(x.V, i), part(x.G, i), part(x.Beta, i)}
	}
	b.before[0].Zero()
	for i := range b.before[1:] {
		c := b.of(parts(in, i))
		c.correct(b.before[i])
		copy(b.before[i+1].Data, b.before[i].Data)
		c.remember(b.before[i+1])
	}
	b.after.Zero()
	for i := len(b.before) - 1; i >= 0; i-- {
		c := b.of(parts(in, i))
		c.correct(b.before[i])
		c.gradients(parts(d, i), b.before[i], b.after, part(do, i))
	}
}

// chunkBack is the work on a chunk of tokens.
type chunkBack struct {
	*Shape
	space
	in    *Inputs
	n     int
	total float64 // the sum of g
}

func (b *back) of(in *Inputs) *chunkBack {
	n := in.Q.Rows
	c := &chunkBack{Shape: b.Shape, space: b.space.first(n), in: in, n: n}
	for t := range n {
		c.total += max(float64(in.G.Row(t)[0]), least)
		c.sums[t] = c.total
		row := c.fade.Row(t)
		for i := range t + 1 {
			row[i] = float32(c.total - c.sums[i])
		}
		elementwise.ExpSum(row[:t+1], row[:t+1], 0)
		clear(row[t+1:])
	}
	return c
}

// started is e^{G_t}, and left e^{G−G_t}.
func (c *chunkBack) started(t int) float32 { return float32(math.Exp(c.sums[t])) }
func (c *chunkBack) left(t int) float32    { return float32(math.Exp(c.total - c.sums[t])) }

// correct sets e, u and ofKey, the latter above the diagonal to zeros and on it to what nobody may use, for the memory before.
func (c *chunkBack) correct(memory *tensor.Matrix) {
	var products gemm.Serial
	c.ofKey.Zero()
	products.NT(c.ofKey, 1, c.in.K, c.in.K)
	times(c.ofKey, c.fade)
	c.e.Zero()
	products.NN(c.e, 1, c.in.K, memory)
	for t := range c.n {
		e, f := c.e.Row(t), c.started(t)
		for j, v := range c.in.V.Row(t) {
			e[j] = v - f*e[j]
		}
	}
	for b0 := 0; b0 < c.n; b0 += block {
		b1 := min(b0+block, c.n)
		if b0 > 0 {
			products.NN(c.e.View(b0, b1, 0, c.e.Cols), -1, c.ofKey.View(b0, b1, 0, b0), c.u.View(0, b0, 0, c.u.Cols))
		}
		for t := b0; t < b1; t++ {
			for s := b0; s < t; s++ {
				vector.Axpy(c.e.Row(t), -c.ofKey.Row(t)[s], c.u.Row(s))
			}
			copy(c.u.Row(t), c.e.Row(t))
			elementwise.Scale(c.u.Row(t), c.in.Beta.Row(t)[0])
		}
	}
}

// remember takes the memory from before the chunk to after it.
func (c *chunkBack) remember(memory *tensor.Matrix) {
	elementwise.Scale(memory.Data, float32(math.Exp(c.total)))
	for t := range c.n {
		copy(c.keys.Row(t), c.in.K.Row(t))
		elementwise.Scale(c.keys.Row(t), c.left(t))
	}
	var products gemm.Serial
	products.TN(memory, 1, c.keys, c.u)
}

// gradients takes after, the gradient at the memory after the chunk, to that at the memory before it.
func (c *chunkBack) gradients(d *Inputs, memory, after, do *tensor.Matrix) {
	var products gemm.Serial
	q, k := c.in.Q, c.in.K
	c.ofQuery.Zero()
	products.NT(c.ofQuery, c.Scale, q, k)
	times(c.ofQuery, c.fade)
	c.corrections(d, after, do)

	// Gradients at the products that L multiplies.
	c.read.Zero()
	products.NT(c.read, 1, do, c.u)
	c.held.Zero()
	products.NT(c.held, -1, c.z, c.u)
	for t := range c.n {
		clear(c.held.Row(t)[t:])
		f, pairs := c.fade.Row(t), c.pairs.Row(t)
		read, held, ofQuery, ofKey := c.read.Row(t), c.held.Row(t), c.ofQuery.Row(t), c.ofKey.Row(t)
		for s := range t {
			pairs[s] = read[s]*ofQuery[s] + held[s]*ofKey[s]
		}
		for s := range f {
			read[s] *= c.Scale * f[s]
			held[s] *= f[s]
		}
	}
	products.NN(d.Q, 1, c.read, k)
	products.TN(d.K, 1, c.read, q)
	products.TN(d.K, 1, c.held, k)
	products.NN(d.K, 1, c.held, k)

	// What meets the memory before, scale·S·do_t and −S·z_t, and after, Λ·u_t.
	clear(c.reads)
	touch := func(dst, with, by, m *tensor.Matrix, alpha float32, factor func(t int) float32, sums []float64) {
		c.keys.Zero()
		products.NT(c.keys, alpha, by, m)
		for t := range c.n {
			row := c.keys.Row(t)
			elementwise.Scale(row, factor(t))
			for i, v := range with.Row(t) {
				sums[t] += float64(v) * float64(row[i])
			}
			vector.Axpy(dst.Row(t), 1, row)
		}
	}
	clear(c.writes)
	touch(d.Q, q, do, memory, c.Scale, c.started, c.reads)
	touch(d.K, k, c.z, memory, -1, c.started, c.reads)
	touch(d.K, k, c.u, after, 1, c.left, c.writes)

	whole := math.Exp(c.total)
	through := 0.0
	for i, v := range memory.Data {
		through += float64(v) * float64(after.Data[i])
	}
	decays := scan.Decays{Pairs: c.pairs, Reads: c.reads, Writes: c.writes, Through: whole * through}
	decays.Back(c.dg)
	for t := range c.n {
		d.G.Row(t)[0] = float32(c.dg[t])
	}

	elementwise.Scale(after.Data, float32(whole))
	add := func(x, by *tensor.Matrix, alpha float32) {
		for t := range c.n {
			copy(c.keys.Row(t), x.Row(t))
			elementwise.Scale(c.keys.Row(t), c.started(t))
		}
		products.TN(after, alpha, c.keys, by)
	}
	add(q, do, c.Scale)
	add(k, c.z, -1)
}

// corrections solves for w and z, and sets the gradients at v and β.
func (c *chunkBack) corrections(d *Inputs, after, do *tensor.Matrix) {
	var products gemm.Serial
	c.w.Zero()
	products.NN(c.w, 1, c.in.K, after)
	for t := range c.n {
		elementwise.Scale(c.w.Row(t), c.left(t))
	}
	products.TN(c.w, 1, c.ofQuery, do)
	for b1 := c.n; b1 > 0; {
		b0 := (b1 - 1) / block * block
		if b1 < c.n {
			products.TN(c.w.View(b0, b1, 0, c.w.Cols), -1, c.ofKey.View(b1, c.n, b0, b1), c.z.View(b1, c.n, 0, c.z.Cols))
		}
		for t := b1 - 1; t >= b0; t-- {
			for r := t + 1; r < b1; r++ {
				vector.Axpy(c.w.Row(t), -c.ofKey.Row(r)[t], c.z.Row(r))
			}
			beta, w, z := c.in.Beta.Row(t)[0], c.w.Row(t), c.z.Row(t)
			sum := 0.0
			for j, v := range w {
				sum += float64(v) * float64(c.e.Row(t)[j])
				z[j] = beta * v
			}
			copy(d.V.Row(t), z)
			d.Beta.Row(t)[0] = float32(sum)
		}
		b1 = b0
	}
}

// times sets m *= f, element by element.
func times(m, f *tensor.Matrix) {
	for t := range m.Rows {
		row := m.Row(t)
		for i, v := range f.Row(t) {
			row[i] *= v
		}
	}
}
