package pipeline

import (
	"math"
	"slices"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// GroupRanges shows what smoothing and AWQ do to a group: how its inputs on a sample of the calibration text, and its
// weights, are spread before and after.
type GroupRanges struct {
	Group         string `json:"group"`
	InputBefore   Spread `json:"input_before"`
	InputAfter    Spread `json:"input_after"`
	WeightsBefore Spread `json:"weights_before"`
	WeightsAfter  Spread `json:"weights_after"`
}

// Spread describes values of many channels: features of an input, or columns of weights.
type Spread struct {
	// Least, Median, P99 and Largest are of the channels' largest magnitudes.
	Least   float64 `json:"least"`
	Median  float64 `json:"median"`
	P99     float64 `json:"p99"`
	Largest float64 `json:"largest"`
	// Histogram counts all values by magnitude, in SpreadBins bins of half an octave: the last ends at HistogramRange,
	// a power of two, and the first has everything below it too, zeros included.
	Histogram      []int64 `json:"histogram"`
	HistogramRange float64 `json:"histogram_range"`
}

// SpreadBins is how many bins a Spread's histogram has: twelve octaves, a factor of 4096.
const SpreadBins = 24

// spreadOf describes the columns of some matrices of equal width.
func spreadOf(ms ...*tensor.Matrix) Spread {
	channels := make([]float32, ms[0].Cols)
	for _, m := range ms {
		for r := range m.Rows {
			for j, v := range m.Row(r) {
				channels[j] = max(channels[j], v, -v)
			}
		}
	}
	slices.Sort(channels)
	at := func(share float64) float64 { return float64(channels[int(share*float64(len(channels)-1))]) }
	s := Spread{Least: at(0), Median: at(0.5), P99: at(0.99), Largest: at(1), Histogram: make([]int64, SpreadBins)}
	_, top := math.Frexp(s.Largest) // Largest < 2^top
	s.HistogramRange = math.Ldexp(1, top)
	for _, m := range ms {
		for r := range m.Rows {
			for _, v := range m.Row(r) {
				s.Histogram[spreadBin(v, top)]++
			}
		}
	}
	return s
}

// spreadBin is the bin of v where the last bin ends at 2^top.
func spreadBin(v float32, top int) int {
	frac, exp := math.Frexp(math.Abs(float64(v))) // frac in [1/2, 1)
	if frac == 0 {
		return 0
	}
	bin := SpreadBins - 2*(top-exp+1)
	if frac >= math.Sqrt2/2 {
		bin++
	}
	return min(max(bin, 0), SpreadBins-1) // scales may have made a value infinite, which has no octave
}

// spreads describes a group's input and weights.
func spreads(g *quant.Group) (input, weights Spread) {
	ws := make([]*tensor.Matrix, len(g.Linears))
	for i, l := range g.Linears {
		ws[i] = l.W
	}
	return spreadOf(g.Sample), spreadOf(ws...)
}
