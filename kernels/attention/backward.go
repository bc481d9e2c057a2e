package attention

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// Back sets dq, dk and dv to the gradients at q, k and v of whole sequences of so many tokens, which Of takes one by one, for do, that at
// its results. With P the softmax and dP = do·Vᵀ, the scores' gradient is dS = P∘(dP − Σ P∘dP), and the rest are products: dQ = dS·K,
// dK = dSᵀ·Q, dV = Pᵀ·do (Dao et al., arXiv:2205.14135, appendix B). A sink takes part in P alone.
//
// Where p allows bfloat16, products round their inputs to it, as Of does. Values that have much in common would then leave nothing of
// dP's differences, but the softmax does not see what all keys have alike: the mean is taken off. With a sink, which has no
// value, it does, and dP is made in float32.
func Back(shape *Shape, seqLen int, dq, dk, dv, q, k, v, do *tensor.Matrix, p kernels.Precision) {
	shape.check(do, q, k, v)
	for _, m := range [][2]*tensor.Matrix{{dq, q}, {dk, k}, {dv, v}} {
		if m[0].Rows != m[1].Rows || m[0].Cols != m[1].Cols {
			panic("attention: shapes do not agree")
		}
	}
	if q.Rows != k.Rows || seqLen < 1 || q.Rows%seqLen != 0 {
		panic("attention: not whole sequences")
	}
	if q.Rows == 0 {
		return
	}
	t, values := tile.For(p), tile.For(p)
	if shape.Sinks != nil {
		values = tile.For(kernels.F32)
	}
	kernels.Parallel(q.Rows/seqLen*shape.KVHeads, 1, func(lo, hi int) {
		if t == nil {
			for i := lo; i < hi; i++ {
				shape.plainBack(i/shape.KVHeads*seqLen, seqLen, i%shape.KVHeads, dq, dk, dv, q, k, v, do)
			}
			return
		}
		b := &backward{Shape: shape, n: seqLen, t: t, values: values, dq: dq, dk: dk, dv: dv, q: q, k: k, v: v, do: do}
		defer words.Put(b.room())
		for i := lo; i < hi; i++ {
			b.sequence(i/shape.KVHeads*seqLen, i%shape.KVHeads)
		}
	})
}

// backTile is how many queries' scores of a head exist at a time, or as many fewer as panels want.
const backTile = 64

// backward is the way back through the heads of a sequence that share keys. The gradients of these, to which one head after the other adds, are
// made transposed, features×tokens: P and dS are then packed as they lie.
type backward struct {
	*Shape
	n                       int          // tokens of a sequence
	t, values               *tile.Tiling // values is that of dP
	dq, dk, dv, q, k, v, do *tensor.Matrix

	padded                    int // tokens, to whole strips
	tile                      int // queries
	keySteps, valueSteps      int // of features that queries and keys, gradients and values are summed over
	pitchQ, pitchDo, pitchS   int
	pitchT, pitchK            int
	keys, valueStrips, byKeys []uint32 // K as what Q is multiplied with, V likewise with do, K as what dS is
	qs, dos                   []uint32 // a tile's queries and gradients, row by row
	across, strip             []uint32 // the same transposed, and on the way there
	p, dp                     []float32
	left                      []uint32 // dp, as what is multiplied from the left
	strips                    []uint32 // P or dS, as what queries and gradients are multiplied with
	dKeys, dValues            []float32
	out                       []float32 // a panel of dQ
	centred, slope            []float32
}

func up(n, to int) int { return (n + to - 1) / to * to }

// room makes room for everything, and returns what is to be given back.
func (b *backward) room() []uint32 {
	t, strip := b.t, b.t.Strip()
	b.padded = up(b.n, strip)
	b.tile = max(backTile/t.Panel(), 1) * t.Panel()
	b.keySteps = up(b.KeyDim, t.Depth()) / t.Depth()
	b.valueSteps = up(b.ValueDim, b.values.Depth()) / b.values.Depth()
	b.pitchQ, b.pitchDo = pack.Pitch(b.keySteps), pack.Pitch(b.valueSteps)
	b.pitchS, b.pitchK = pack.Pitch(b.padded), pack.Pitch(b.padded)
	b.pitchT = pack.Pitch(up(b.tile, t.Lanes))
	rows := b.tile + max(t.Panel(), b.values.Panel()) // a panel's kernel may write more than there are
	features := up(max(b.KeyDim, b.ValueDim), strip) + t.Panel()
	var sizes []int
	var parts []*[]uint32
	of := func(to *[]uint32, n int) {
		parts, sizes = append(parts, to), append(sizes, n)
	}
	past := t.Lanes * strip // a transposition writes whole vectors
	of(&b.keys, b.padded*b.keySteps+past)
	of(&b.valueStrips, b.padded*b.valueSteps+past)
	of(&b.byKeys, up(b.KeyDim, strip)*b.padded)
	of(&b.qs, rows*b.pitchQ)
	of(&b.dos, rows*b.pitchDo)
	of(&b.across, features*b.pitchT)
	of(&b.strip, max(up(b.tile, t.Lanes)*strip, max(t.StagingWords(), b.values.StagingWords())))
	of(&b.strips, b.padded*b.tile)
	floats := make([][]uint32, 7)
	for i, n := range []int{rows * b.pitchS, rows * b.pitchS, features * b.pitchK, features * b.pitchK, t.Panel() * up(b.KeyDim, strip),
		(b.n + 1) * b.ValueDim, b.padded} {
		of(&floats[i], n)
	}
	total := 0
	for _, n := range sizes {
		total += up(n, 16)
	}
	buf := words.Get(total)
	at := 0
	for i, to := range parts {
		*to = buf[at : at+sizes[i]]
		at += up(sizes[i], 16)
	}
	for i, to := range []*[]float32{&b.p, &b.dp, &b.dKeys, &b.dValues, &b.out, &b.centred, &b.slope} {
		*to = words.Floats(floats[i])
	}
	b.left = floats[1]
	clear(b.qs)
	clear(b.dos)
	clear(b.across)
	return buf
}

// sequence computes the gradients of the tokens from row r on at a head of keys and values, and at the queries that share it.
func (b *backward) sequence(r, kv int) {
	keys := b.k.View(r, r+b.n, kv*b.KeyDim, (kv+1)*b.KeyDim)
	values := b.v.View(r, r+b.n, kv*b.ValueDim, (kv+1)*b.ValueDim)
	if b.values.Pairs {
		values = b.centre(values)
	}
	b.packRows(b.t, b.keys, keys, b.keySteps)
	b.packRows(b.values, b.valueStrips, values, b.valueSteps)
	strip, steps := b.t.Strip(), up(b.n, b.t.Depth())/b.t.Depth()
	byKeys := tile.ColsOf(keys)
	for j := 0; j < b.KeyDim; j += strip {
		b.t.PackB(&byKeys, b.n, b.byKeys[j*steps:], nil, j, min(j+strip, b.KeyDim), 0, steps)
	}
	clear(b.dKeys)
	clear(b.dValues)
	shared := b.Heads / b.KVHeads
	for head := kv * shared; head < (kv+1)*shared; head++ {
		for t0 := 0; t0 < b.n; t0 += b.tile {
			b.queries(r, head, t0, min(t0+b.tile, b.n))
		}
	}
	b.transposeTo(b.dk.View(r, r+b.n, kv*b.KeyDim, (kv+1)*b.KeyDim), b.dKeys)
	b.transposeTo(b.dv.View(r, r+b.n, kv*b.ValueDim, (kv+1)*b.ValueDim), b.dValues)
}

// centre returns v less its mean.
func (b *backward) centre(v *tensor.Matrix) *tensor.Matrix {
	c := tensor.FromSlice(v.Rows, v.Cols, b.centred[:v.Rows*v.Cols])
	mean := b.centred[v.Rows*v.Cols:]
	clear(mean)
	for t := range v.Rows {
		vector.Axpy(mean, 1/float32(v.Rows), v.Row(t))
	}
	for t := range v.Rows {
		copy(c.Row(t), v.Row(t))
		vector.Axpy(c.Row(t), -1, mean)
	}
	return c
}

// packRows packs m's rows as columns of a right factor.
func (b *backward) packRows(t *tile.Tiling, dst []uint32, m *tensor.Matrix, steps int) {
	operand, strip := tile.RowsOf(m), t.Strip()
	for j := 0; j < m.Rows; j += strip {
		for from := 0; from < steps; from += t.KC { // as many steps as the staging holds
			t.PackB(&operand, m.Cols, dst[j*steps+from*strip:], b.strip, j, min(j+strip, m.Rows), from, min(from+t.KC, steps))
		}
	}
}

// queries sets the gradients at queries [t0,t1) of a head, and adds to those at the keys and values that they meet.
func (b *backward) queries(r, head, t0, t1 int) {
	t, strip, rows := b.t, b.t.Strip(), t1-t0
	q := b.q.View(r+t0, r+t1, head*b.KeyDim, (head+1)*b.KeyDim)
	do := b.do.View(r+t0, r+t1, head*b.ValueDim, (head+1)*b.ValueDim)
	first := 0 // of the keys, and with last of whole strips
	if b.Window > 0 {
		first = max(0, t0-b.Window+1) / strip * strip
	}
	last := up(t1, strip)
	n := last - first
	b.scores(t, b.p, b.Scale, b.qs, b.pitchQ, q, b.keys[first*b.keySteps:], b.keySteps, first, t0)
	b.scores(b.values, b.dp, 1, b.dos, b.pitchDo, do, b.valueStrips[first*b.valueSteps:], b.valueSteps, first, t0)
	for i := range rows {
		lo, hi := 0, t0+i+1-first
		if b.Window > 0 {
			lo = max(0, t0+i-b.Window+1-first)
		}
		b.softmaxBack(b.p[i*b.pitchS:][:n], b.dp[i*b.pitchS:][:n], lo, hi, head)
	}
	if rows%t.Depth() != 0 { // the last query is alone in its words
		clear(b.p[rows*b.pitchS:][:n])
		clear(b.dp[rows*b.pitchS:][:n])
	}
	b.addAcross(b.dValues[first:], 1, do, b.p, n)
	b.addAcross(b.dKeys[first:], b.Scale, q, b.dp, n)

	// dQ: dS, row by row, is what is multiplied from the left.
	steps := up(b.n, t.Depth()) / t.Depth()
	for i := 0; i < rows; i += t.Panel() {
		m := min(t.Panel(), rows-i)
		kernel := t.Kernel(m)
		seen := up(t0+i+m, strip) - first
		if t.Pairs { // in place: words are written where values were read before
			for y := i; y < i+m; y++ {
				pack.BF16(b.left[y*b.pitchS:], b.dp[y*b.pitchS:][:seen])
			}
		}
		summed := up(min(seen, b.n-first), t.Depth()) / t.Depth()
		for j := 0; j < b.KeyDim; j += strip {
			cols := min(strip, b.KeyDim-j)
			right := &b.byKeys[j*steps+first/t.Depth()*strip]
			if m == kernel.Rows && cols == strip {
				kernel.Run(summed, &b.left[i*b.pitchS], 4*b.pitchS, 4, right, &b.dq.Data[(r+t0+i)*b.dq.Stride+head*b.KeyDim+j], 4*b.dq.Stride,
					b.Scale, false, &b.qs[0], 0)
				continue
			}
			kernel.Run(summed, &b.left[i*b.pitchS], 4*b.pitchS, 4, right, &b.out[0], 4*strip, b.Scale, false, &b.qs[0], 0)
			for y := range m {
				copy(b.dq.Row(r + t0 + i + y)[head*b.KeyDim+j:][:cols], b.out[y*strip:])
			}
		}
	}
}

// scores sets dst, of which rows are pitchS apart, to alpha·m·Bᵀ for keys from first on; a panel of queries, the first of which is token t0,
// meets the keys before its end.
func (b *backward) scores(t *tile.Tiling, dst []float32, alpha float32, left []uint32, pitch int, m *tensor.Matrix, right []uint32, steps, first, t0 int) {
	for i := 0; i < m.Rows; i += t.Panel() {
		rows := min(t.Panel(), m.Rows-i)
		for y := range rows {
			t.ToWords(left[(i+y)*pitch:][:steps], m.Row(i+y))
		}
		kernel := t.Kernel(rows)
		kernel.RunMany((up(t0+i+rows, t.Strip())-first)/t.Strip(), t.Strip(), steps, &left[i*pitch], 4*pitch, 4, right, dst[i*b.pitchS:],
			4*b.pitchS, alpha, false, left[:1], 0, 0)
	}
}

// addAcross adds alpha·(Aᵀ·S)ᵀ, features×tokens, to dst: A, rows×features, are queries or gradients, S, of n columns that are whole strips, what
// they have in common with the keys.
func (b *backward) addAcross(dst []float32, alpha float32, a *tensor.Matrix, s []float32, n int) {
	t, strip := b.t, b.t.Strip()
	steps := up(a.Rows, t.Depth()) / t.Depth()
	operand := tile.ColsOf(a)
	plain := *t // A is the left operand: what weaves the right one is not for it
	plain.Weave = nil
	for j := 0; j < a.Cols; j += strip {
		plain.PackB(&operand, a.Rows, b.strip, nil, j, min(j+strip, a.Cols), 0, steps)
		for step := 0; step < steps; step += t.Lanes {
			t.Transpose(&b.across[j*b.pitchT+step], 4*b.pitchT, &b.strip[step*strip], 4*strip, 2)
		}
	}
	for j := 0; j < n; j += strip {
		t.CopyStrip(&b.strips[j*steps], words.Of(&s[j]), 4*b.pitchS, steps)
		if pairs := steps / 2; t.Weave != nil && pairs > 0 {
			t.Weave(&b.strips[j*steps], pairs)
		}
	}
	for j := 0; j < a.Cols; j += t.Panel() {
		kernel := t.Kernel(min(t.Panel(), a.Cols-j))
		kernel.RunMany(n/strip, strip, steps, &b.across[j*b.pitchT], 4*b.pitchT, 4, b.strips, dst[j*b.pitchK:], 4*b.pitchK, alpha, true,
			b.across[:1], 0, 0)
	}
}

// transposeTo sets dst, tokens×features, to sums that are features×tokens.
func (b *backward) transposeTo(dst *tensor.Matrix, sums []float32) {
	l := b.t.Lanes
	rows, cols := dst.Rows/l*l, dst.Cols/l*l
	for j := 0; j < cols; j += l {
		if rows > 0 {
			b.t.Transpose(words.Of(&dst.Data[j]), 4*dst.Stride, words.Of(&sums[j*b.pitchK]), 4*b.pitchK, rows/l)
		}
	}
	for i := range dst.Rows {
		from := cols
		if i >= rows {
			from = 0
		}
		row := dst.Row(i)
		for j := from; j < len(row); j++ {
			row[j] = sums[j*b.pitchK+i]
		}
	}
}

// nothing is what fills up vectors of scores: its exponentials are 0.
var nothing = func() (v [16]float32) {
	for i := range v {
		v[i] = float32(math.Inf(-1))
	}
	return v
}()

// softmaxBack makes the scores p of a query with keys [lo,hi) into their softmax, and dp, the gradient there, into that at the scores before
// the softcap. All other keys get zeros. Both have whole vectors.
func (b *backward) softmaxBack(p, dp []float32, lo, hi, head int) {
	from, to := lo/len(nothing)*len(nothing), min(up(hi, len(nothing)), len(p))
	clear(p[:from])
	clear(p[to:])
	clear(dp[:lo])
	clear(dp[hi:])
	copy(p[from:lo], nothing[:])
	copy(p[hi:to], nothing[:])
	if b.Softcap != 0 {
		for j, s := range p[lo:hi] {
			th := math.Tanh(float64(s / b.Softcap))
			p[lo+j], b.slope[lo+j] = float32(float64(b.Softcap)*th), float32(1-th*th)
		}
	}
	p, dp = p[from:to], dp[from:to]
	largest, sum := elementwise.Max(p), float32(0)
	if b.Sinks != nil {
		largest = max(largest, b.Sinks[head])
		sum = float32(math.Exp(float64(b.Sinks[head] - largest)))
	}
	sum += elementwise.ExpSum(p, p, largest)
	elementwise.Scale(p, 1/sum)
	elementwise.SoftmaxBack(dp, p)
	if b.Softcap != 0 {
		for j := lo; j < hi; j++ {
			dp[j-from] *= b.slope[j]
		}
	}
}
