package attention

import (
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// causalGo keeps all scores of one query at a time.
func causalGo(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim, window int, scale float32) {
	const tile = 32 // query rows that one call handles
	tiles := (q.Rows + tile - 1) / tile
	kernels.Parallel(heads*tiles, 1, func(lo, hi int) {
		scores := make([]float32, k.Rows)
		before := k.Rows - q.Rows // tokens without a query
		out := make([]float32, headDim)
		for i := lo; i < hi; i++ {
			h := i / tiles
			t0 := i % tiles * tile
			kv := h / (heads / kvHeads) * headDim
			for i := t0; i < min(t0+tile, q.Rows); i++ {
				t, first := before+i, 0
				if window > 0 {
					first = max(0, t-window+1)
				}
				qt := q.Row(i)[h*headDim : (h+1)*headDim]
				s := scores[:t+1-first]
				for j := range s {
					s[j] = scale * vector.PlainDot(qt, k.Row(first + j)[kv:kv+headDim])
				}
				softmax(s)
				clear(out)
				for j, p := range s {
					vector.PlainAxpy(out, p, v.Row(first + j)[kv:kv+headDim])
				}
				copy(dst.Row(i)[h*headDim:], out)
			}
		}
	})
}

// softmax replaces s by its exponentials, of the difference to the largest, divided by their sum.
func softmax(s []float32) {
	largest := float32(math.Inf(-1))
	for _, v := range s {
		largest = max(largest, v)
	}
	var sum float64
	for i, v := range s {
		s[i] = float32(math.Exp(float64(v - largest)))
		sum += float64(s[i])
	}
	inverse := 1 / float32(sum)
	for i := range s {
		s[i] *= inverse
	}
}
