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
