package kernels

import (
	"math"

	"github.com/llmq/llmq/tensor"
)

// Attention sets dst to causal attention over one sequence: token t of head h takes
// Σ_s softmax_s(scale·q_t·k_s)·v_s over s ≤ t and, if window > 0, s > t−window. q and dst are tokens×(heads·headDim),
// k and v tokens×(kvHeads·headDim); kvHeads divides heads, and consecutive query heads share a key head.
// dst may be q.
func Attention(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim, window int, scale float32) {
	checkAttention(dst, q, k, v, heads, kvHeads, headDim)
	const tile = 32 // query rows that one call handles
	tiles := (q.Rows + tile - 1) / tile
	Parallel(heads*tiles, 1, func(lo, hi int) {
		scores := make([]float32, q.Rows)
		out := make([]float32, headDim)
		for i := lo; i < hi; i++ {
			h := i / tiles
			t0 := i % tiles * tile
			kv := h / (heads / kvHeads) * headDim
			for t := t0; t < min(t0+tile, q.Rows); t++ {
				first := 0
				if window > 0 {
					first = max(0, t-window+1)
				}
				qt := q.Row(t)[h*headDim : (h+1)*headDim]
				s := scores[:t+1-first]
				for j := range s {
					s[j] = scale * Dot(qt, k.Row(first + j)[kv:kv+headDim])
				}
				Softmax(s)
				clear(out)
				for j, p := range s {
					Axpy(out, p, v.Row(first + j)[kv:kv+headDim])
				}
				copy(dst.Row(t)[h*headDim:], out)
			}
		}
	})
}

// AttentionScale is the usual scale of the scores: 1/√headDim.
func AttentionScale(headDim int) float32 { return float32(1 / math.Sqrt(float64(headDim))) }

func checkAttention(dst, q, k, v *tensor.Matrix, heads, kvHeads, headDim int) {
	if kvHeads <= 0 || heads%kvHeads != 0 || q.Cols != heads*headDim || k.Cols != kvHeads*headDim ||
		v.Cols != k.Cols || k.Rows != q.Rows || v.Rows != q.Rows {
		panic("kernels: attention shapes do not agree")
	}
	checkSame(dst, q)
}
