package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Round fits b's scales to the weights w of one block and rounds each to the nearest code. importance may be nil.
func (g *Grid) Round(b *Block, w, importance []float32) {
	g.Fit(b, w, importance)
	for k := range g.Groups() {
		scale, minimum := b.Scale(k)
		for j := k * g.Group; j < (k+1)*g.Group; j++ {
			b.Codes[j] = g.Nearest(w[j], scale, minimum)
		}
	}
}

// RTN rounds each weight of w, out×in, to nearest. importance has one value per column, or is nil.
func RTN(w *tensor.Matrix, importance []float32, g *Grid) *Weight {
	q := NewWeight(g, w.Rows, w.Cols)
	kernels.Parallel(w.Rows, 4, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			for i := range w.Cols / g.Block {
				c0, c1 := i*g.Block, (i+1)*g.Block
				var imp []float32
				if importance != nil {
					imp = importance[c0:c1]
				}
				b := q.Block(r, i)
				g.Round(&b, w.Row(r)[c0:c1], imp)
				q.SetBlock(r, i, &b)
			}
		}
	})
	return q
}
