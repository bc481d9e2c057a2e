package int8outlier_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/tensor"
)

func random(rows, cols int, seed uint64) *tensor.Matrix {
	rng := rand.New(rand.NewPCG(seed, 1))
	m := tensor.New(rows, cols)
	for i := range m.Data {
		m.Data[i] = float32(rng.NormFloat64())
	}
	return m
}

// reference is the package comment's formula in float64, column sets and all.
func reference(x, w *tensor.Matrix, outliers []int) [][]float64 {
	scale := func(row []float32) float64 {
		var absmax float64
		for j, v := range row {
			if !slices.Contains(outliers, j) {
				absmax = max(absmax, math.Abs(float64(v)))
			}
		}
		return absmax / 127
	}
	code := func(v float32, scale float64) float64 {
		if scale == 0 {
			return 0
		}
		return math.Round(float64(v) / scale)
	}
	out := make([][]float64, x.Rows)
	for t := range out {
		out[t] = make([]float64, w.Rows)
		xs := scale(x.Row(t))
		for o := range out[t] {
			ws := scale(w.Row(o))
			var half, dot float64
			for j, v := range x.Row(t) {
				u := w.Row(o)[j]
				if slices.Contains(outliers, j) {
					half += float64(tensor.RoundF16(v)) * float64(tensor.RoundF16(u))
				} else {
					dot += code(v, xs) * code(u, ws)
				}
			}
			out[t][o] = half + xs*ws*dot
		}
	}
	return out
}

func TestMatMul(t *testing.T) {
	for _, c := range []struct {
		tokens, in, out int
		outliers        []int
	}{
		{1, 1, 1, nil}, {1, 1, 1, []int{0}}, {5, 33, 7, []int{32, 0}}, {9, 64, 20, nil}, {40, 100, 17, []int{3, 50, 99}},
		{3, 4, 5, []int{0, 1, 2, 3}}, {0, 8, 4, []int{1}},
	} {
		x, w := random(c.tokens, c.in, 2), random(c.out, c.in, 3)
		for r := range x.Rows {
			for _, j := range c.outliers {
				x.Row(r)[j] *= 300
			}
		}
		if x.Rows > 2 {
			clear(x.Row(1))
			clear(w.Row(2))
		}
		got := tensor.New(c.tokens, c.out)
		prepared := int8outlier.New(w, c.outliers)
		prepared.MatMul(got, x)
		for i, row := range reference(x, w, c.outliers) {
			for o, want := range row {
				// float32 scales and sums; a code on the edge may fall to the other side, but not in these samples.
				if v := got.Row(i)[o]; math.Abs(float64(v)-want) > 1e-4*(1+math.Abs(want)) {
					t.Errorf("%+v: [%d %d] is %v, want %v", c, i, o, v, want)
				}
			}
		}
		// A row's result does not depend on the others.
		for i := range x.Rows {
			alone := tensor.New(1, c.out)
			prepared.MatMul(alone, x.View(i, i+1, 0, c.in))
			if !slices.Equal(alone.Row(0), got.Row(i)) {
				t.Errorf("%+v: row %d alone is %v, with others %v", c, i, alone.Row(0), got.Row(i))
			}
		}
	}
}

// TestOutliersHelp is the paper's point: one large feature ruins plain vector-wise INT8, and not the decomposition.
func TestOutliersHelp(t *testing.T) {
	x, w := random(64, 128, 4), random(32, 128, 5)
	for r := range x.Rows {
		x.Row(r)[77] *= 200
	}
	exact := reference(x, w, allColumns(128))
	measure := func(outliers []int) (sum float64) {
		got := tensor.New(64, 32)
		int8outlier.New(w, outliers).MatMul(got, x)
		for i := range exact {
			for o, want := range exact[i] {
				sum += math.Pow(float64(got.Row(i)[o])-want, 2)
			}
		}
		return sum
	}
	if plain, split := measure(nil), measure([]int{77}); split > plain/100 {
		t.Errorf("squared error %v with the outlier kept, %v without", split, plain)
	}
}

func allColumns(n int) (all []int) {
	for j := range n {
		all = append(all, j)
	}
	return all
}

func TestBeyondFloat16(t *testing.T) {
	x, w, got := random(1, 2, 6), random(1, 2, 7), tensor.New(1, 1)
	x.Data[0], x.Data[1], w.Data[0] = 1e9, 0, 1
	int8outlier.New(w, []int{0}).MatMul(got, x)
	if got.Data[0] != 65504 {
		t.Errorf("1e9 becomes %v, want float16's largest value", got.Data[0])
	}
}

func TestFeatures(t *testing.T) {
	// Five layers of 100 positions and five features, which differ in where they reach 6.
	counts := func(n ...int) int8outlier.Counts { return int8outlier.Counts{Positions: 100, Outliers: n} }
	layers := []int8outlier.Counts{
		counts(100, 30, 15, 14, 0),
		counts(100, 0, 15, 15, 0),
		counts(100, 0, 0, 0, 0),
		counts(100, 0, 0, 0, 0),
		counts(100, 0, 0, 0, 0),
	}
	// 0 is everywhere; 1 is in one layer of five; 2 is in two, at 6% of all positions; 3 at 5.8%.
	if got := (int8outlier.Criteria{}).Features(layers); !slices.Equal(got, []int{0, 2}) {
		t.Errorf("features %v, want [0 2]", got)
	}
	loose := int8outlier.Criteria{Layers: 1e-9, Positions: 1e-9}
	if got := loose.Features(layers); !slices.Equal(got, []int{0, 1, 2, 3}) {
		t.Errorf("features %v, want [0 1 2 3]", got)
	}
	if got := (int8outlier.Criteria{}).Features(nil); got != nil {
		t.Errorf("features %v of no layers", got)
	}

	var n int8outlier.Counts
	x := tensor.FromSlice(2, 3, []float32{6, -5.99, -7, 1, 2, -6})
	(int8outlier.Criteria{}).Observe(&n, x)
	(int8outlier.Criteria{}).Observe(&n, x)
	if n.Positions != 4 || !slices.Equal(n.Outliers, []int{2, 0, 4}) {
		t.Errorf("%+v, want 4 positions and outliers 2, 0, 4", n)
	}
	var none int8outlier.Counts
	inf := int8outlier.Criteria{Magnitude: math.Inf(1)}
	inf.Observe(&none, x)
	if got := inf.Features([]int8outlier.Counts{none}); got != nil {
		t.Errorf("features %v of an infinite magnitude", got)
	}
}
