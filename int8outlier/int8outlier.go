// Package int8outlier multiplies matrices in eight bits but for the outlier features, which stay in sixteen: LLM.int8()
// (Dettmers et al., arXiv:2208.07339).
//
// With O the outlier features, X's columns and W's columns alike,
//
//	X·Wᵀ ≈ Σ_{h∈O} X_h·W_hᵀ + s_x·s_w·Σ_{h∉O} X'_h·W'_hᵀ
//
// where the first sum's factors are float16 and the second's are integers from −127 to 127: vector-wise quantization
// gives each row of X and each row of W the scale that its largest magnitude needs, outliers left out.
package int8outlier

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/i8"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Weights is an out×in matrix prepared for products.
type Weights struct {
	codes    *i8.Matrix     // outlier columns are zero
	outliers []int          // columns
	skip     []bool         // by column, whether it is an outlier; nil if none is
	half     *tensor.Matrix // out×len(outliers), float16 values
}

// New prepares w, out×in, whose columns outliers, distinct and within in, stay in float16. Without outliers products are
// plain vector-wise INT8.
func New(w *tensor.Matrix, outliers []int) *Weights {
	p := &Weights{codes: i8.New(w.Rows, w.Cols, w.Cols), outliers: outliers}
	if len(outliers) > 0 {
		p.skip = make([]bool, w.Cols)
		for _, j := range outliers {
			p.skip[j] = true
		}
		p.half = tensor.New(w.Rows, len(outliers))
		p.gather(p.half, w)
	}
	quant.Int8Rows(p.codes, w, p.skip)
	return p
}

// maxFloat16 is float16's largest value; what is beyond it is taken for it.
const maxFloat16 = 65504

// gather sets dst to the outlier columns of m as float16 values.
func (w *Weights) gather(dst, m *tensor.Matrix) {
	kernels.Parallel(m.Rows, 64, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			row, out := m.Row(r), dst.Row(r)
			for i, j := range w.outliers {
				out[i] = tensor.RoundF16(min(max(row[j], -maxFloat16), maxFloat16))
			}
		}
	})
}

// MatMul sets dst = X·Wᵀ; X is tokens×in, dst tokens×out. Each row of X is by itself: the result does not depend on what
// other rows there are. Products of eight bits are summed in int32, those of float16 values in float32.
func (w *Weights) MatMul(dst, x *tensor.Matrix) {
	codes := i8.New(x.Rows, x.Cols, x.Cols)
	quant.Int8Rows(codes, x, w.skip)
	i8.MatMul(dst, codes, w.codes)
	if len(w.outliers) == 0 {
		return
	}
	half := tensor.New(x.Rows, len(w.outliers))
	w.gather(half, x)
	gemm.NT(dst, 1, half, w.half)
}
