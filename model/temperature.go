package model

import (
	"math"

	"github.com/llmq/llmq/tensor"
)

// Temperature sharpens attention at far positions: the queries of position p are multiplied by
// 1 + Scale·ln(1 + ⌊(p+Offset)/Every⌋) (Llama 4, Ministral 3). It is 1 up to position Every−Offset.
type Temperature struct {
	Scale         float64
	Every, Offset int
}

// apply multiplies queries, the first of which is at position at. A nil Temperature is 1.
func (f *Temperature) apply(q *tensor.Matrix, at int) {
	if f == nil {
		return
	}
	for t := range q.Rows {
		steps := (at + t + f.Offset) / f.Every
		if steps == 0 {
			continue
		}
		scale := float32(1 + f.Scale*math.Log(float64(1+steps)))
		row := q.Row(t)
		for j := range row {
			row[j] *= scale
		}
	}
}
