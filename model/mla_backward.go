package model

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/tensor"
)

// back is a derivative: dz is the gradient at O's input, the heads' results.
func (a *MLA) back(st *State, d *Differential, h, dz, dh *tensor.Matrix) {
	rows, wide := h.Rows, a.Nope+a.Rope
	kv := st.apply(h, []string{"kv_a"}, a.KVA)[0]
	keys := st.Scratch("latent keys", rows, a.Rank+a.Rope) // latents, and keys that are turned
	latents, turned := keys.View(0, rows, 0, a.Rank), st.columns("rotated keys", kv, a.Rank, a.Rank+a.Rope)
	a.KVNorm.apply(latents, kv.View(0, rows, 0, a.Rank))
	a.rotate(st, turned, st.SeqLen)
	copyTo(keys, a.Rank, turned)

	q, qa := a.queriesOf(st, h)
	dq, dKeys := st.Scratch("back q", rows, q.Cols), st.Scratch("back latent keys", rows, keys.Cols)
	dKeys.Zero()
	for i := range a.Heads {
		a.headBack(st, d, &mlaHead{i,
			q.View(0, rows, i*wide, (i+1)*wide), dq.View(0, rows, i*wide, (i+1)*wide), keys, dKeys,
			st.columns("back head", dz, i*a.ValueDim, (i+1)*a.ValueDim)})
	}

	if a.Q != nil {
		d.back(st, a.Q, dh, dq)
	} else {
		dIn := st.Scratch("back q_b", rows, a.QB.In)
		dIn.Zero()
		d.back(st, a.QB, dIn, dq)
		a.QNorm.back(dIn, qa, dIn)
		d.back(st, a.QA, dh, dIn)
	}
	dLatents := dKeys.View(0, rows, 0, a.Rank)
	a.KVNorm.back(dLatents, kv.View(0, rows, 0, a.Rank), dLatents)
	dTurned := st.columns("rotated keys", dKeys, a.Rank, a.Rank+a.Rope)
	a.rotateBack(st, dTurned)
	copyTo(dKeys, a.Rank, dTurned)
	d.back(st, a.KVA, dh, dKeys)
}

// queriesOf returns the queries of all heads, before RoPE, and the input of QNorm, if there is one.
func (a *MLA) queriesOf(st *State, h *tensor.Matrix) (q, qa *tensor.Matrix) {
	if a.Q != nil {
		return st.apply(h, []string{"q"}, a.Q)[0], nil
	}
	qa = st.apply(h, []string{"q_a"}, a.QA)[0]
	in := st.Scratch("back q_a", qa.Rows, qa.Cols)
	a.QNorm.apply(in, qa)
	return st.apply(in, []string{"q"}, a.QB)[0], qa
}

// rotateBack takes the gradient at turned features, tokens×Rope, to that before RoPE: turning by the opposite angle is the
// transposed matrix.
func (a *MLA) rotateBack(st *State, dx *tensor.Matrix) {
	cos, sin := a.RoPE.Table(st.SeqLen)
	inverse := tensor.New(st.SeqLen, sin.Cols)
	for t := range inverse.Rows {
		for j, s := range sin.Row(t) {
			inverse.Row(t)[j] = -s
		}
	}
	for i := 0; i < dx.Rows; i += st.SeqLen {
		elementwise.RoPE(dx.View(i, i+st.SeqLen, 0, dx.Cols), a.Rope, cos.View(0, st.SeqLen, 0, cos.Cols), inverse, a.RoPE.Style)
	}
}

// mlaHead is what the way back through a head takes, and leaves, for all tokens of a batch.
type mlaHead struct {
	index       int
	q, dq       *tensor.Matrix // its columns of the queries, Nope+Rope
	keys, dKeys *tensor.Matrix // latents and turned keys, which all heads share
	do          *tensor.Matrix // the gradient at its result, ValueDim
}

// headBack sets the gradient at a head's query, and adds to that at the latents and keys. With P the softmax, z = P·c the means
// of latents and dP = dz·cᵀ, the scores' gradient is P∘(dP − Σ P∘dP), as in other attention.
func (a *MLA) headBack(st *State, d *Differential, x *mlaHead) {
	rows, kb, vb := x.q.Rows, a.KB[x.index], a.VB[x.index]
	nope, turned := st.columns("head in", x.q, 0, a.Nope), st.columns("rotated queries", x.q, a.Nope, a.Nope+a.Rope)
	a.rotate(st, turned, st.SeqLen)
	queries, dQueries := st.Scratch("latent queries", rows, a.Rank+a.Rope), st.Scratch("back latent queries", rows, a.Rank+a.Rope)
	copyTo(queries, 0, st.apply(nope, []string{"absorbed"}, kb)[0])
	copyTo(queries, a.Rank, turned)
	dMeans := st.Scratch("back means", rows, a.Rank)
	dMeans.Zero()
	d.back(st, vb, dMeans, x.do)

	dQueries.Zero()
	for r := 0; r < rows; r += st.SeqLen {
		of := func(m *tensor.Matrix) *tensor.Matrix { return m.View(r, r+st.SeqLen, 0, m.Cols) }
		a.coreBack(st, of(queries), of(x.keys), of(dMeans), of(dQueries), of(x.dKeys))
	}

	dAbsorbed := st.columns("absorbed", dQueries, 0, a.Rank)
	dNope := st.Scratch("head in", rows, a.Nope)
	dNope.Zero()
	d.back(st, kb, dNope, dAbsorbed)
	dTurned := st.columns("rotated queries", dQueries, a.Rank, a.Rank+a.Rope)
	a.rotateBack(st, dTurned)
	copyTo(x.dq, 0, dNope)
	copyTo(x.dq, a.Nope, dTurned)
}

// mlaTile is how many queries' scores of a head exist at a time.
const mlaTile = 256

// coreBack adds to the gradients at one head's queries and at the keys, of one sequence. Heads come one after the other, as they
// add to the same keys: it is the products that are spread over the processors.
func (a *MLA) coreBack(st *State, q, keys, dMeans, dq, dKeys *tensor.Matrix) {
	for t0 := 0; t0 < q.Rows; t0 += mlaTile {
		t1 := min(t0+mlaTile, q.Rows)
		tile := func(m *tensor.Matrix) *tensor.Matrix { return m.View(t0, t1, 0, m.Cols) }
		seen, latents := keys.View(0, t1, 0, keys.Cols), keys.View(0, t1, 0, a.Rank)
		p, dp := st.Scratch("back softmax", t1-t0, t1), st.Scratch("back scores", t1-t0, t1)
		p.Zero()
		dp.Zero()
		gemm.NT(p, a.Scale, tile(q), seen)
		gemm.NT(dp, 1, tile(dMeans), latents)
		byRows(p.Rows, func(lo, hi int) {
			for t := lo; t < hi; t++ {
				softmaxBack(p.Row(t), dp.Row(t), t0+t+1)
			}
		})
		gemm.NN(tile(dq), a.Scale, dp, seen, st.precision)
		gemm.TN(dKeys.View(0, t1, 0, keys.Cols), a.Scale, dp, tile(q), st.precision)
		gemm.TN(dKeys.View(0, t1, 0, a.Rank), 1, p, tile(dMeans), st.precision)
	}
}

// softmaxBack makes the first n of the scores p into their softmax, and of dp, the gradient there, into that at the scores. All
// others get zeros.
func softmaxBack(p, dp []float32, n int) {
	clear(p[n:])
	clear(dp[n:])
	p, dp = p[:n], dp[:n]
	softmaxRow(p)
	var mean float64
	for j, v := range p {
		mean += float64(v) * float64(dp[j])
	}
	for j, v := range p {
		dp[j] = v * (dp[j] - float32(mean))
	}
}
