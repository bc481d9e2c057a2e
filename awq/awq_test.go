package awq

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// weightAndInputs returns heavy-tailed weights, rows×cols, and statistics of correlated inputs.
func weightAndInputs(rows, cols int) (*tensor.Matrix, *quant.Stats) {
	rng := rand.New(rand.NewPCG(1, uint64(cols)))
	w := tensor.New(rows, cols)
	for i := range w.Data {
		v := rng.NormFloat64()
		w.Data[i] = float32(v * v * v)
	}
	x := tensor.New(2*cols, cols)
	for t := range x.Rows {
		common := rng.NormFloat64()
		for j := range x.Row(t) {
			x.Row(t)[j] = float32(common + rng.NormFloat64()*float64(1+j%7))
		}
	}
	in := quant.NewStats(cols)
	in.Observe(x)
	return w, in
}

// TestQuantize: on every grid, what Quantize returns is its own decoding, and its outputs are nearer to the original's
// than those of weights rounded to nearest.
func TestQuantize(t *testing.T) {
	for _, typ := range ggml.Types {
		if typ.Grid == nil {
			continue
		}
		w, in := weightAndInputs(19, 512)
		errorOf := func(q *quant.Weight) float64 {
			values, packed := tensor.New(w.Rows, w.Cols), tensor.New(w.Rows, w.Cols)
			q.DecodeTo(values)
			typ.ParseWeight(typ.PackWeight(q), w.Rows, w.Cols).DecodeTo(packed)
			for i, v := range values.Data {
				if v != packed.Data[i] {
					t.Fatalf("%s: weight %d is %v, %v in the file", typ.Name, i, v, packed.Data[i])
				}
			}
			return quant.OutputError(w, values, in.H)
		}
		q, err := Quantize(t.Context(), w, in, typ.Grid)
		if err != nil {
			t.Fatal(err)
		}
		got, nearest := errorOf(q), errorOf(quant.RTN(w, in.Importance(), typ.Grid))
		if _, ok := typ.Grid.(*quant.Affine); !ok {
			if got != nearest {
				t.Errorf("%s: words are clipped: error %.3g, rounded to nearest %.3g", typ.Name, got, nearest)
			}
			continue
		}
		t.Logf("%-7s error %.3g, rounded to nearest %.3g", typ.Name, got, nearest)
		most := 0.97
		if typ == ggml.MXFP4 {
			most = 0.98 // of powers of two there are few to choose from
		}
		if typ == ggml.TQ1_0 || typ == ggml.Q1_0 { // of three or two codes there is little to clip
			most = 1
		}
		if !(got < most*nearest) {
			t.Errorf("%s: error %.3g, rounded to nearest %.3g", typ.Name, got, nearest)
		}
	}
}

// TestClipperChange holds the change of the error that the clipper computes to the two errors' difference.
func TestClipperChange(t *testing.T) {
	w, in := weightAndInputs(1, 64)
	g := ggml.Q4_0.Grid.(*quant.Affine)
	c := newClipper(g, in.H)
	total := func(lost []float32) float64 {
		var sum float64
		for i, a := range lost {
			for j, b := range lost {
				sum += float64(a) * float64(b) * float64(in.H.Row(i)[j])
			}
		}
		return sum
	}
	q := quant.RTN(w, nil, g)
	values := tensor.New(1, 64)
	q.DecodeTo(values)
	c.w, c.lost = w.Data, make([]float32, 64)
	for j, v := range values.Data {
		c.lost[j] = v - w.Data[j]
	}
	for i := range 64 {
		for j, v := range c.lost {
			c.grad[i] += v * in.H.Row(i)[j]
		}
	}
	before := total(c.lost)
	changed := append([]float32(nil), c.lost...)
	for j := range c.trial {
		c.trial[j] = 0.1 * float32(j)
		changed[32+j] = c.trial[j]
	}
	want := total(changed) - before
	if got := c.change(c.lost[32:], c.grad[32:], 32); math.Abs(got-want) > 1e-4*math.Abs(want) {
		t.Errorf("change %g, want %g", got, want)
	}
	// After a group is clipped, the gradient is that of its new values.
	b := q.Block(0, 1)
	c.group(&b, 0, 32)
	for i := range 64 {
		var want float64
		for j, v := range c.lost {
			want += float64(v) * float64(in.H.Row(i)[j])
		}
		if d := math.Abs(float64(c.grad[i]) - want); d > 1e-3*(1+math.Abs(want)) {
			t.Errorf("gradient %d is %g, want %g", i, c.grad[i], want)
		}
	}
	if after := total(c.lost); after > before {
		t.Errorf("error %g after clipping, %g before", after, before)
	}
}

// TestScales: the formulas of the paper, normalised by √(max·min), and channels that nothing excites stay finite.
func TestScales(t *testing.T) {
	x, w := []float32{1, 16, 4, 0}, []float32{1, 1, 4, 0}
	s := scales(x[:3], w[:3], candidate{point: 10})
	for j, want := range []float64{0.5, 2, 1} { // √x over √(4·1)
		if math.Abs(float64(s[j])-want) > 1e-6 {
			t.Errorf("scale %d is %v, want %v", j, s[j], want)
		}
	}
	s = scales(x[:3], w[:3], candidate{point: 10, duo: true})
	for j, want := range []float64{0.5, 2, 0.5} { // √(x/w) is 1, 4, 1
		if math.Abs(float64(s[j])-want) > 1e-6 {
			t.Errorf("scale %d by weights too is %v, want %v", j, s[j], want)
		}
	}
	for _, duo := range []bool{false, true} {
		for _, v := range scales(x, w, candidate{point: 20, duo: duo}) {
			if !(v > 0) || math.IsInf(float64(v), 0) {
				t.Errorf("scale %v for dead channels", v)
			}
		}
	}
}
