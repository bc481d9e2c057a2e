package attention

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// plain is Of with all scores of one query at a time.
func (a *Shape) plain(dst, q, k, v *tensor.Matrix) {
	const tile = 32 // query rows that one call handles
	tiles := (q.Rows + tile - 1) / tile
	kernels.Parallel(a.Heads*tiles, 1, func(lo, hi int) {
		scores := make([]float32, k.Rows)
		before := k.Rows - q.Rows // tokens without a query
		out := make([]float32, a.ValueDim)
		for i := lo; i < hi; i++ {
			h := i / tiles
			t0 := i % tiles * tile
			kv := h / (a.Heads / a.KVHeads)
			for i := t0; i < min(t0+tile, q.Rows); i++ {
				t, first := before+i, 0
				if a.Window > 0 {
					first = max(0, t-a.Window+1)
				}
				qt := q.Row(i)[h*a.KeyDim : (h+1)*a.KeyDim]
				s := scores[:t+1-first]
				for j := range s {
					s[j] = a.Scale * vector.PlainDot(qt, k.Row(first + j)[kv*a.KeyDim:(kv+1)*a.KeyDim])
				}
				a.softmax(s, h)
				clear(out)
				for j, p := range s {
					vector.PlainAxpy(out, p, v.Row(first + j)[kv*a.ValueDim:(kv+1)*a.ValueDim])
				}
				copy(dst.Row(i)[h*a.ValueDim:], out)
			}
		}
	})
}

// softmax replaces the scores s of head h by their exponentials, of the difference to the largest, divided by their sum.
func (a *Shape) softmax(s []float32, h int) {
	largest := float32(math.Inf(-1))
	if a.Sinks != nil {
		largest = a.Sinks[h]
	}
	for i, v := range s {
		if c := float64(a.Softcap); c != 0 {
			s[i] = float32(c * math.Tanh(float64(v)/c))
		}
		largest = max(largest, s[i])
	}
	var sum float64
	if a.Sinks != nil {
		sum = math.Exp(float64(a.Sinks[h] - largest))
	}
	for i, v := range s {
		s[i] = float32(math.Exp(float64(v - largest)))
		sum += float64(s[i])
	}
	inverse := 1 / float32(sum)
	for i := range s {
		s[i] *= inverse
	}
}

// plainBack is Back for the sequence whose first token is in row r, and one head of its keys, with all scores of one query at a time.
func (a *Shape) plainBack(r, n, kv int, dq, dk, dv, q, k, v, do *tensor.Matrix) {
	key := func(m *tensor.Matrix, t int) []float32 { return m.Row(r + t)[kv*a.KeyDim : (kv+1)*a.KeyDim] }
	value := func(m *tensor.Matrix, t int) []float32 { return m.Row(r + t)[kv*a.ValueDim : (kv+1)*a.ValueDim] }
	for t := range n {
		clear(key(dk, t))
		clear(value(dv, t))
	}
	p, slope, dp := make([]float32, n), make([]float32, n), make([]float32, n)
	shared := a.Heads / a.KVHeads
	for h := kv * shared; h < (kv+1)*shared; h++ {
		for t := range n {
			qt, dqt := q.Row(r + t)[h*a.KeyDim:(h+1)*a.KeyDim], dq.Row(r + t)[h*a.KeyDim:(h+1)*a.KeyDim]
			dout := do.Row(r + t)[h*a.ValueDim : (h+1)*a.ValueDim]
			first := 0
			if a.Window > 0 {
				first = max(0, t-a.Window+1)
			}
			p, slope, dp := p[first:t+1], slope[first:t+1], dp[first:t+1]
			for j := range p {
				p[j] = a.Scale * vector.PlainDot(qt, key(k, first+j))
				slope[j] = 1 // of the softcap
				if c := float64(a.Softcap); c != 0 {
					th := math.Tanh(float64(p[j]) / c)
					slope[j] = float32(1 - th*th)
				}
			}
			a.softmax(p, h)
			var mean float64
			for j := range p {
				dp[j] = vector.PlainDot(dout, value(v, first+j))
				mean += float64(p[j]) * float64(dp[j])
			}
			clear(dqt)
			for j := range p {
				ds := p[j] * (dp[j] - float32(mean)) * slope[j] * a.Scale
				vector.PlainAxpy(dqt, ds, key(k, first+j))
				vector.PlainAxpy(key(dk, first+j), ds, qt)
				vector.PlainAxpy(value(dv, first+j), p[j], dout)
			}
		}
	}
}
