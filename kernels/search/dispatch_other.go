//go:build !amd64 || purego

package search

import "github.com/llmq/llmq/kernels"

func (*BestScale) search(int, []kernels.Lane, []kernels.Lane, *kernels.Lane, []float32, int, int32, int32) {
	panic("search: no vectors")
}

func (*BestMinimum) search(int, []kernels.Lane, []kernels.Lane, *Moments, []Range, int, int32, int32) {
	panic("search: no vectors")
}

func (*BestRange) choose(int, int32, []kernels.Lane, []kernels.Lane, []Range, int32, int32) {
	panic("search: no vectors")
}

func (*BestMultiple) choose(int, []kernels.Lane, []kernels.Lane, *Window, [][2]float32, int32, int32, float32, float32, float32) {
	panic("search: no vectors")
}

func spreadRanges(int, []Range, *kernels.Lane, *kernels.Lane, *kernels.Lane, [][2]float32) {
	panic("search: no vectors")
}

func (*Span) span(int, []kernels.Lane, []kernels.Lane) { panic("search: no vectors") }

func nearestLevels(int, []int8, []float32, float32, float32, int8, int8) {
	panic("search: no vectors")
}

func (*Lattice) errors(int, []kernels.Lane, []Range, float32, float32, float32) {
	panic("search: no vectors")
}

func largest(int, *kernels.Lane, []kernels.Lane) { panic("search: no vectors") }

func normalize(int, []kernels.Lane, *kernels.Lane, *kernels.Lane) { panic("search: no vectors") }

func (*Moves) move(float64, float64, float64, float64) uint16 { panic("search: no vectors") }

// Measure measures the first n candidates on a group of weights, an even number: see MeasureLevels.
func (c *Candidates) Measure(n int, x, wt []float32, lo, hi int32) { c.measureGo(n, x, wt, lo, hi) }

// MeasureEach measures each of the first n candidates on a group of its own, lane i of x and wt, whose length is even
// and at most MaxLane.
func (c *Candidates) MeasureEach(n int, x, wt [][16]float32, lo, hi int32) {
	c.measureEachGo(n, x, wt, lo, hi)
}
