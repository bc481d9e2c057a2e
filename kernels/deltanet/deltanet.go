// Package deltanet is the gated delta rule (Yang, Kautz and Hatamizadeh, arXiv:2412.06464), a chunk of tokens at a time.
//
// A head has a memory S of keys×values. Token t lets it fade, then corrects what it holds for the key k_t towards the value
// v_t, and reads it with the query q_t:
//
//	S ← e^{g_t}·S;  u_t = β_t·(v_t − Sᵀk_t);  S ← S + k_t·u_tᵀ;  o_t = scale·Sᵀq_t
//
// Within a chunk, with G_t the sum of g up to t, S_t = e^{G_t}·S + Σ_{s≤t} e^{G_t−G_s}·k_s·u_sᵀ. So the corrections solve a
// triangular system, and everything else is matrix products (Yang et al., arXiv:2406.06484):
//
//	u_t + Σ_{s<t} β_t·e^{G_t−G_s}·(k_t·k_s)·u_s = β_t·(v_t − e^{G_t}·Sᵀk_t)
//	o_t = scale·(e^{G_t}·Sᵀq_t + Σ_{s≤t} e^{G_t−G_s}·(q_t·k_s)·u_s)
//
// All exponents are at most 0, so that nothing overflows, whatever the gates.
package deltanet

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// Shape says which heads there are.
type Shape struct {
	Heads, KeyHeads  int // KeyHeads divides Heads
	KeyDim, ValueDim int // features of a head in q and k, and in v and the result
	// Grouped: consecutive heads share a head of q and k. Otherwise head h has that of h mod KeyHeads.
	Grouped bool
	Scale   float32 // of the result
}

// keyHead is the head of q and k that head h has.
func (s *Shape) keyHead(h int) int {
	if s.Grouped {
		return h / (s.Heads / s.KeyHeads)
	}
	return h % s.KeyHeads
}

const (
	// chunk is how many tokens are taken at a time: corrections within a chunk cost chunk·KeyDim/2 multiply-adds a token,
	// and chunk·ValueDim/2, where the memory costs 3·KeyDim·ValueDim.
	chunk = 64
	// block is how many of a chunk's corrections are solved one after the other; those of blocks before come as a product.
	block = 16
	// least bounds g from below: e^least is 0 in float64 too, and sums keep what is small beside it.
	least = -1000
)

// Scan sets dst, tokens×(Heads·ValueDim), to the rule's result for sequences of seqLen tokens, each of which begins with an
// empty memory. q and k are tokens×(KeyHeads·KeyDim), v tokens×(Heads·ValueDim), g (at most 0) and beta tokens×Heads. dst
// may be v. It is in float32: the error of an element is about 10⁻⁶ of the largest result.
func Scan(s *Shape, dst, q, k, v, g, beta *tensor.Matrix, seqLen int) {
	check(s, dst, q, k, v, g, beta, seqLen)
	if q.Rows == 0 {
		return
	}
	workers := kernels.Processors()
	if q.Rows*s.Heads*s.KeyDim*s.ValueDim < 1<<16 {
		workers = 1
	}
	kernels.Spread(q.Rows/seqLen*s.Heads, workers, func(i int) {
		h, t0 := i%s.Heads, i/s.Heads*seqLen
		of := func(m *tensor.Matrix, head, dim int) *tensor.Matrix {
			return m.View(t0, t0+seqLen, head*dim, (head+1)*dim)
		}
		kh := s.keyHead(h)
		s.head(of(dst, h, s.ValueDim), of(q, kh, s.KeyDim), of(k, kh, s.KeyDim), of(v, h, s.ValueDim), of(g, h, 1), of(beta, h, 1))
	})
}

func check(s *Shape, dst, q, k, v, g, beta *tensor.Matrix, seqLen int) {
	n := q.Rows
	if s.KeyHeads <= 0 || s.Heads%s.KeyHeads != 0 || seqLen <= 0 || n%seqLen != 0 ||
		q.Cols != s.KeyHeads*s.KeyDim || k.Cols != q.Cols || v.Cols != s.Heads*s.ValueDim || dst.Cols != v.Cols ||
		g.Cols != s.Heads || beta.Cols != s.Heads ||
		k.Rows != n || v.Rows != n || dst.Rows != n || g.Rows != n || beta.Rows != n {
		panic("deltanet: shapes do not agree")
	}
}

// head scans one sequence of one head.
func (s *Shape) head(dst, q, k, v, g, beta *tensor.Matrix) {
	c := min(chunk, q.Rows)
	buf := words.Get(s.KeyDim*s.ValueDim + 2*c*s.KeyDim + 2*c*c + 3*c*s.ValueDim + c)
	defer words.Put(buf)
	free := words.Floats(buf)
	take := func(rows, cols int) *tensor.Matrix {
		m := tensor.FromSlice(rows, cols, free[:rows*cols])
		free = free[rows*cols:]
		return m
	}
	memory := take(s.KeyDim, s.ValueDim)
	memory.Zero()
	keys, scores, read, u := take(2*c, s.KeyDim), take(2*c, c), take(2*c, s.ValueDim), take(c, s.ValueDim)
	fade := take(1, c).Row(0)
	for t0 := 0; t0 < q.Rows; t0 += c {
		n := min(c, q.Rows-t0)
		part := func(m *tensor.Matrix) *tensor.Matrix { return m.View(t0, t0+n, 0, m.Cols) }
		s.chunk(part(dst), part(q), part(k), part(v), part(g), part(beta), memory,
			keys.View(0, 2*n, 0, s.KeyDim), scores.View(0, 2*n, 0, n), read.View(0, 2*n, 0, s.ValueDim),
			u.View(0, n, 0, s.ValueDim), fade[:n])
	}
}

// chunk takes n tokens and leaves the memory as it is after them. both, 2n×KeyDim, scores, 2n×n, read, 2n×ValueDim, u,
// n×ValueDim, and fade, n, are scratch: of both, scores and read the first n rows are the keys', the others the queries'.
func (s *Shape) chunk(dst, q, k, v, g, beta, memory, both, scores, read, u *tensor.Matrix, fade []float32) {
	n := q.Rows
	for t := range n {
		copy(both.Row(t), k.Row(t))
		copy(both.Row(n+t), q.Row(t))
	}
	var products gemm.Serial
	keys := both.View(0, n, 0, both.Cols)
	scores.Zero()
	products.NT(scores, 1, both, keys)
	read.Zero()
	products.NN(read, 1, both, memory)

	var sums [chunk]float64
	sum := 0.0
	for t := range n {
		sum += max(float64(g.Row(t)[0]), least)
		sums[t] = sum
	}
	for t := range n {
		row, b := fade[:t+1], beta.Row(t)[0]
		elementwise.Decays(row, sums[:t+1], sums[t])
		// scores become what multiplies the corrections: −β_t·e^{G_t−G_s}·(k_t·k_s) and e^{G_t−G_s}·(q_t·k_s).
		ofKey, ofQuery := scores.Row(t), scores.Row(n+t)
		elementwise.ScaleMul(ofKey[:t+1], row, ofKey[:t+1], -b)
		elementwise.ScaleMul(ofQuery[:t+1], row, ofQuery[:t+1], 1)
		clear(ofQuery[t+1:])
		before := float32(math.Exp(sums[t]))
		// u_t = β_t·(v_t − e^{G_t}·Sᵀk_t), as far as the memory before the chunk goes.
		ut := u.Row(t)
		elementwise.ScaleTo(ut, read.Row(t), -before)
		vector.Axpy(ut, 1, v.Row(t))
		elementwise.Scale(ut, b)
		elementwise.ScaleTo(dst.Row(t), read.Row(n+t), s.Scale*before)
	}
	for b0 := 0; b0 < n; b0 += block {
		b1 := min(b0+block, n)
		if b0 > 0 {
			products.NN(u.View(b0, b1, 0, u.Cols), 1, scores.View(b0, b1, 0, b0), u.View(0, b0, 0, u.Cols))
		}
		for t := b0 + 1; t < b1; t++ {
			for i := b0; i < t; i++ {
				vector.Axpy(u.Row(t), scores.Row(t)[i], u.Row(i))
			}
		}
	}
	products.NN(dst, s.Scale, scores.View(n, 2*n, 0, n), u)

	elementwise.Scale(memory.Data, float32(math.Exp(sum)))
	for t := range n {
		elementwise.Scale(keys.Row(t), float32(math.Exp(sum-sums[t])))
	}
	products.TN(memory, 1, keys, u)
}
