package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// Add adds what o has seen of the same input.
func (s *Stats) Add(o *Stats) {
	s.Tokens += o.Tokens
	addMatrix(&s.H, o.H)
	addMatrix(&s.Drift, o.Drift)
	addMatrix(&s.Shortfall, o.Shortfall)
	addSums(&s.Sum, o.Sum)
	addSums(&s.DriftSum, o.DriftSum)
	addSums(&s.ShortfallSum, o.ShortfallSum)
}

// addMatrix adds o, of the same shape or nil, to what dst points to, nil being all zeros.
func addMatrix(dst **tensor.Matrix, o *tensor.Matrix) {
	if o == nil {
		return
	}
	if *dst == nil {
		*dst = tensor.New(o.Rows, o.Cols)
	}
	sum := *dst
	kernels.Parallel(o.Rows, 16, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			vector.Axpy(sum.Row(i), 1, o.Row(i))
		}
	})
}

func addSums(dst *[]float64, o []float64) {
	if *dst == nil && o != nil {
		*dst = make([]float64, len(o))
	}
	for i, v := range o {
		(*dst)[i] += v
	}
}

// Reset forgets what was seen, and keeps the room for it.
func (s *Stats) Reset() {
	s.Tokens = 0
	for _, m := range []*tensor.Matrix{s.H, s.Drift, s.Shortfall} {
		if m != nil {
			m.Zero()
		}
	}
	for _, sum := range [][]float64{s.Sum, s.DriftSum, s.ShortfallSum} {
		clear(sum)
	}
}
