package model

import (
	"github.com/llmq/llmq/kernels/attention"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// MLA is multi-head latent attention (DeepSeek-AI, arXiv:2405.04434) in the form that llama.cpp stores: the up-projections
// of keys and values are absorbed into queries and results, so that all heads attend to one sequence of latents.
//
// Of a token's input x, KVA makes a latent c, Rank features that KVNorm normalises, and Rope features of a key that RoPE
// turns. Head i has a query of Nope and Rope features: the first become KB[i]·q, which meets c, the others are turned
// and meet the turned key. The latents' weighted mean z becomes VB[i]·z, ValueDim features.
type MLA struct {
	Heads, Nope, Rope, Rank, ValueDim int

	// Q makes the queries, or QA, QNorm and QB do, where Q is nil.
	Q, QA, QB *Linear
	QNorm     *Norm
	KVA       *Linear
	KVNorm    *Norm
	KB, VB    []*Linear // by head: Rank×Nope, ValueDim×Rank
	O         *Linear

	RoPE  *RoPE
	Scale float32
}

// Branch is the attention with its output. The heads' linears are sites of their own, as those of experts are.
func (a *MLA) Branch() Branch {
	for _, l := range append([]*Linear{a.Q, a.QB}, a.KB...) {
		if l != nil {
			l.Product = true
		}
	}
	first := &Site{Name: "attn_in", Expert: -1, Linears: []*Linear{a.KVA}, Shares: "attn_in"}
	var stages []Stage
	if a.Q != nil {
		first.Linears = append(first.Linears, a.Q)
		stages = []Stage{{Sites: []*Site{first}, Apply: a.in}}
	} else {
		first.Linears = append(first.Linears, a.QA)
		stages = []Stage{{Sites: []*Site{first}, Apply: a.in}, {
			Sites: []*Site{{Name: "attn_q_b", Expert: -1, Linears: []*Linear{a.QB}, Prev: &quant.Scaler{Name: a.QNorm.Name, Norm: a.QNorm.W}}},
			Apply: func(st *State) { st.In = st.apply(st.In, []string{"q"}, a.QB)[0] },
		}}
	}
	key, value := a.heads("attn_k_b", a.KB, a.Nope+a.Rope), a.heads("attn_v_b", a.VB, a.Rank)
	key.Apply, value.Apply = a.attend, a.values
	return Branch{
		Stages: append(stages, key, value),
		Out:    &Site{Name: "attn_out", Expert: -1, Linears: []*Linear{a.O}},
		Costly: true, Narrows: true, Back: a,
	}
}

// heads is a stage with a site for each head, which sees the first features of the head's stride in the stage's input.
func (a *MLA) heads(name string, linears []*Linear, stride int) Stage {
	var s Stage
	for i, l := range linears {
		s.Sites = append(s.Sites, &Site{Name: name, Expert: i, Head: true, Linears: []*Linear{l}})
	}
	s.Input = func(st *State, i int) (*tensor.Matrix, []int) {
		return st.columns("head in", st.In, i*stride, i*stride+linears[i].In), nil
	}
	return s
}

// in leaves queries, or the input of QB, of the tokens that st wants in st.In, and keeps what all tokens are attended by.
func (a *MLA) in(st *State) {
	h, queries := st.In, st.In
	if st.last < st.SeqLen {
		queries = st.lastOf("queries", h)
	}
	q := a.Q
	if q == nil {
		q = a.QA
	}
	var kv *tensor.Matrix
	if st.last < st.SeqLen {
		kv, st.In = st.apply(h, []string{"kv_a"}, a.KVA)[0], st.apply(queries, []string{"q_a"}, q)[0]
	} else {
		r := st.apply(h, []string{"kv_a", "q_a"}, a.KVA, q)
		kv, st.In = r[0], r[1]
	}
	if a.Q == nil {
		a.QNorm.apply(st.In, st.In)
	}
	latents, keys := st.columns("latents", kv, 0, a.Rank), st.columns("rotated keys", kv, a.Rank, a.Rank+a.Rope)
	a.KVNorm.apply(latents, latents)
	a.rotate(st, keys, st.SeqLen)
	both := st.Scratch("latent keys", kv.Rows, a.Rank+a.Rope)
	for t := range both.Rows {
		copy(both.Row(t), latents.Row(t))
		copy(both.Row(t)[a.Rank:], keys.Row(t))
	}
	st.kept["latent keys"], st.kept["latents"] = both, latents
}

// rotate turns the heads of x, of which the last rows of each sequence are there.
func (a *MLA) rotate(st *State, x *tensor.Matrix, rows int) {
	a.RoPE.Table(st.SeqLen) // made before it is used from several goroutines
	for i := 0; i < x.Rows; i += rows {
		x := x.View(i, i+rows, 0, x.Cols)
		byRows(rows, func(lo, hi int) { a.RoPE.rotate(x.View(lo, hi, 0, x.Cols), a.Rope, st.SeqLen-rows+lo) })
	}
}

// attend makes the queries in st.In into the weighted means of latents, tokens×(Heads·Rank).
func (a *MLA) attend(st *State) {
	q, dim := st.In, a.Rank+a.Rope
	turned := st.Scratch("rotated queries", q.Rows, a.Heads*a.Rope)
	for t := range q.Rows {
		for i := range a.Heads {
			copy(turned.Row(t)[i*a.Rope:(i+1)*a.Rope], q.Row(t)[i*(a.Nope+a.Rope)+a.Nope:])
		}
	}
	a.rotate(st, turned, st.last)
	shape := attention.Shape{Heads: a.Heads, KVHeads: 1, KeyDim: dim, ValueDim: a.Rank, Scale: a.Scale}
	dst, keys, latents := st.Scratch("means of latents", q.Rows, a.Heads*a.Rank), st.kept["latent keys"], st.kept["latents"]
	// Queries of all heads for all sequences at once would be the largest matrix by far.
	queries := st.Scratch("latent queries", st.last, a.Heads*dim)
	for i := range st.sequences() {
		first, all := i*st.last, i*st.SeqLen
		own, turned := q.View(first, first+st.last, 0, q.Cols), turned.View(first, first+st.last, 0, turned.Cols)
		for head, l := range a.KB {
			at := head * (a.Nope + a.Rope)
			absorbed := st.apply(st.columns("head in", own, at, at+a.Nope), []string{"absorbed"}, l)[0]
			for t := range st.last {
				row := queries.Row(t)[head*dim : (head+1)*dim]
				copy(row, absorbed.Row(t))
				copy(row[a.Rank:], turned.Row(t)[head*a.Rope:])
			}
		}
		attention.Of(&shape, dst.View(first, first+st.last, 0, dst.Cols), queries,
			keys.View(all, all+st.SeqLen, 0, dim), latents.View(all, all+st.SeqLen, 0, a.Rank), st.precision)
	}
	st.narrow()
	st.In = dst
}

// values makes means of latents in st.In into the heads' results, tokens×(Heads·ValueDim).
func (a *MLA) values(st *State) {
	z := st.In
	dst := st.Scratch("attention", z.Rows, a.Heads*a.ValueDim)
	for i, l := range a.VB {
		r := st.apply(st.columns("head in", z, i*a.Rank, (i+1)*a.Rank), []string{"head out"}, l)[0]
		for t := range r.Rows {
			copy(dst.Row(t)[i*a.ValueDim:], r.Row(t))
		}
	}
	st.In = dst
}
