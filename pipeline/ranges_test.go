package pipeline

import (
	"math"
	"strings"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/smoothquant"
	"github.com/llmq/llmq/tensor"
)

// TestSpread: every value is counted in the bin whose bounds it lies between.
func TestSpread(t *testing.T) {
	// The columns' largest magnitudes are 3, 0.25 and 0.
	a := tensor.FromSlice(2, 3, []float32{-3, 0.25, 0, 1, -0.1, 0})
	b := tensor.FromSlice(1, 3, []float32{1.5, 1e-9, 0})
	s := spreadOf(a, b)
	if s.Least != 0 || s.Median != 0.25 || s.P99 != 0.25 || s.Largest != 3 || s.HistogramRange != 4 {
		t.Errorf("%+v", s)
	}
	want := make([]int64, SpreadBins)
	for _, m := range []*tensor.Matrix{a, b} {
		for _, v := range m.Data {
			bin := 0
			for k := 1; k < SpreadBins; k++ {
				if math.Abs(float64(v)) >= 4*math.Pow(2, float64(k-SpreadBins)/2)*(1-1e-12) {
					bin = k
				}
			}
			want[bin]++
		}
	}
	for k, n := range s.Histogram {
		if n != want[k] {
			t.Errorf("bin %d has %d values, want %d", k, n, want[k])
		}
	}
	if want[0] != 4 {
		t.Errorf("%d values in the first bin, want the three zeros and 1e-9", want[0])
	}
	inf := float32(math.Inf(1))
	if s := spreadOf(tensor.FromSlice(1, 3, []float32{inf, math.MaxFloat32, 1})); s.Histogram[SpreadBins-1] != 3 {
		t.Errorf("beside an infinite value: %+v", s) // which bins is of no consequence
	}
	if s := spreadOf(tensor.New(2, 2)); s.Largest != 0 || s.Histogram[0] != 4 {
		t.Errorf("of zeros: %+v", s)
	}
}

// TestRanges: a run reports each group's ranges as smoothing leaves them. With α = 1 an input's scales are its channels'
// largest magnitudes, so none passes 1 any more.
func TestRanges(t *testing.T) {
	tm := testmodel.New("llama")
	src, err := testmodel.Plant(tm.Source(), testmodel.Outliers{Channels: 4, Factor: 50})
	if err != nil {
		t.Fatal(err)
	}
	m, rep := quantized(t, src, sequences(tm, 16, 32), Recipe{
		Method: RTN, Type: ggml.Q4_0, Smooth: &smoothquant.Smoothing{Alpha: 1},
	})
	if len(rep.Ranges) != 4*m.Layers() {
		t.Fatalf("%d groups reported for %d layers", len(rep.Ranges), m.Layers())
	}
	for i, g := range rep.Ranges {
		if g.Group != rep.Foldings[i].Group {
			t.Errorf("group %d is %s, its folding %s", i, g.Group, rep.Foldings[i].Group)
		}
		if g.InputAfter.Largest > 1.0001 || g.InputAfter.Largest < 0.1 {
			t.Errorf("%s: input up to %g after smoothing", g.Group, g.InputAfter.Largest)
		}
		if !strings.HasSuffix(g.Group, "_in") {
			continue
		}
		// Four planted channels of 64: far from the median before.
		if b := g.InputBefore; b.Largest < 10*b.Median {
			t.Errorf("%s: input up to %g with median %g before smoothing", g.Group, b.Largest, b.Median)
		}
		if g.WeightsAfter.Largest == g.WeightsBefore.Largest {
			t.Errorf("%s: the weights have not changed", g.Group)
		}
	}
}
