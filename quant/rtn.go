package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Round fits the scales of blocks of weights, one after the other in w, and rounds them to the nearest codes.
// importance, as long as w, may be nil.
func Round(g Grid, b []Block, w, importance []float32) {
	g.Fit(b, w, importance, Full)
	n := g.Shape().Block
	for i := range b {
		var its []float32
		if importance != nil {
			its = importance[i*n : (i+1)*n]
		}
		g.Round(&b[i], w[i*n:(i+1)*n], its)
		if a, ok := g.(*Affine); ok {
			a.MakePositive(&b[i])
		}
	}
}

// RTN rounds each weight of w, out×in, to nearest. importance has one value per column, or is nil.
func RTN(w *tensor.Matrix, importance []float32, g Grid) *Weight {
	q := NewWeight(g, w.Rows, w.Cols)
	kernels.Parallel(w.Rows, 4, func(lo, hi int) {
		blocks := make([]Block, w.Cols/q.shape.Block)
		for r := lo; r < hi; r++ {
			for i := range blocks {
				blocks[i] = q.Block(r, i)
			}
			Round(g, blocks, w.Row(r), importance)
			for i := range blocks {
				q.SetBlock(r, i, &blocks[i])
			}
		}
	})
	return q
}
