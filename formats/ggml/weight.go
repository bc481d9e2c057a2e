package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// PackWeight returns the bytes of a weight on t's grid, row after row.
func (t *Type) PackWeight(q *quant.Weight) []byte {
	if q.Grid != t.Grid {
		panic("ggml: a weight on " + q.Grid.String() + "'s grid is not " + t.Name)
	}
	n := q.Cols / t.BlockLen
	row := t.RowBytes(q.Cols)
	data := make([]byte, q.Rows*row)
	kernels.Parallel(q.Rows, 16, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			for i := range n {
				b := q.Block(r, i)
				t.Pack(data[r*row+i*t.BlockBytes:][:t.BlockBytes], &b)
			}
		}
	})
	return data
}

// ParseWeight is PackWeight's inverse: the weight of rows×cols that data holds.
func (t *Type) ParseWeight(data []byte, rows, cols int) *quant.Weight {
	q := quant.NewWeight(t.Grid, rows, cols)
	n := cols / t.BlockLen
	row := t.RowBytes(cols)
	kernels.Parallel(rows, 16, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			for i := range n {
				b := q.Block(r, i)
				t.Parse(&b, data[r*row+i*t.BlockBytes:][:t.BlockBytes])
				q.SetBlock(r, i, &b)
			}
		}
	})
	return q
}
