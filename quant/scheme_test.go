package quant_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

func ExampleRange_Asymmetric() {
	a := quant.UInt8.Asymmetric(-2.4, 3.6)
	fmt.Printf("s = %.6f = 6/255, z = %d\n", a.Scale, a.Zero)
	q := a.Code(1.0)
	fmt.Printf("1.0 -> %d -> %.3f\n", q, a.Value(q))
	// Output:
	// s = 0.023529 = 6/255, z = 102
	// 1.0 -> 145 -> 1.012
}

func TestAffine(t *testing.T) {
	for _, c := range []struct {
		a     quant.Affine
		scale float32
		zero  int
		codes map[float32]int
	}{
		{quant.Int8.Symmetric(12.7), 12.7 / 127, 0, map[float32]int{0: 0, 12.7: 127, -12.7: -127, 99: 127, -99: -127, 0.24: 2}},
		{quant.UInt8.Symmetric(12.7), 12.7 / 127, 128, map[float32]int{0: 128, 12.7: 255, -12.7: 1, -99: 0}},
		{quant.UInt8.Asymmetric(1, 2.55), 2.55 / 255, 0, map[float32]int{0: 0, 1: 100, 2.55: 255, -1: 0}},
		{quant.UInt8.Asymmetric(-2.55, -1), 2.55 / 255, 255, map[float32]int{0: 255, -1: 155, -2.55: 0, 1: 255}},
		{quant.Range{-8, 7}.Asymmetric(-8, 7), 1, 0, map[float32]int{0: 0, -8: -8, 7: 7, 2.5: 3, -2.5: -3}},
		{quant.Int8.Symmetric(0), 0, 0, map[float32]int{0: 0, 5: 0}},
		{quant.UInt8.Asymmetric(0, 0), 0, 0, map[float32]int{0: 0, 5: 0}},
		{quant.UInt8.Asymmetric(-math.MaxFloat32, math.MaxFloat32), 2 * (math.MaxFloat32 / 255), 128,
			map[float32]int{0: 128, math.MaxFloat32: 255}},
	} {
		if c.a.Zero != c.zero || math.Abs(float64(c.a.Scale/c.scale-1)) > 1e-6 && c.a.Scale != c.scale {
			t.Errorf("%+v: want scale %v, zero %d", c.a, c.scale, c.zero)
		}
		for x, want := range c.codes {
			if got := c.a.Code(x); got != want {
				t.Errorf("%+v: code of %v is %d, want %d", c.a, x, got, want)
			}
		}
		if v := c.a.Value(c.a.Zero); v != 0 {
			t.Errorf("%+v: 0 becomes %v", c.a, v)
		}
	}
}

func weights(rows, cols int, seed uint64) *tensor.Matrix {
	rng := rand.New(rand.NewPCG(seed, 1))
	w := tensor.New(rows, cols)
	for i := range w.Data {
		// Rows differ in size, and the mean is not 0.
		w.Data[i] = (float32(rng.NormFloat64()) + 0.3) * float32(1+i/cols)
	}
	return w
}

func squaredError(w, q *tensor.Matrix) (sum float64) {
	for i, v := range w.Data {
		d := float64(v) - float64(q.Data[i])
		sum += d * d
	}
	return sum
}

// TestScheme checks, for every scheme, that each weight is within half a step (a whole one if stochastic) and that Δ²/12
// foretells the squared error.
func TestScheme(t *testing.T) {
	w := weights(9, 250, 2)
	got := tensor.New(w.Rows, w.Cols)
	var last float64
	for _, symmetric := range []bool{false, true} {
		for _, g := range []quant.Granularity{quant.PerTensor, quant.PerChannel, quant.PerGroup} {
			for _, stochastic := range []bool{false, true} {
				s := quant.Scheme{Range: quant.Int8, Symmetric: symmetric, Granularity: g, Group: 32,
					Rounding: quant.Rounding{Stochastic: stochastic, Seed: 5}}
				q := s.Quantize(w)
				q.DecodeTo(got)
				sets := map[quant.Granularity]int{quant.PerTensor: 1, quant.PerChannel: 9, quant.PerGroup: 9 * 8}[g]
				if len(q.Params) != sets {
					t.Fatalf("%+v: %d scales, want %d", s, len(q.Params), sets)
				}
				limit, factor := 0.5, 1.0
				if stochastic {
					limit, factor = 1, 2
				}
				for r := range w.Rows {
					for j, v := range w.Row(r) {
						// An asymmetric zero point is rounded, so that the ends of the range may be half a step off.
						p := q.Param(r, j)
						most := limit * float64(p.Scale) * 1.001
						if !symmetric {
							most += 0.5 * float64(p.Scale)
						}
						if d := math.Abs(float64(v - got.Row(r)[j])); d > most {
							t.Fatalf("%+v: [%d %d] is %v off, the step is %v", s, r, j, d, p.Scale)
						}
						if symmetric && p.Zero != 0 {
							t.Fatalf("%+v: zero point %d", s, p.Zero)
						}
					}
				}
				e := squaredError(w, got)
				if ratio := e / (factor * q.Noise()); ratio < 0.9 || ratio > 1.1 {
					t.Errorf("%+v: squared error is %.3f of the estimate", s, ratio)
				}
				if !stochastic {
					if g != quant.PerTensor && e >= last {
						t.Errorf("%+v: error %v is not below that of the coarser scales, %v", s, e, last)
					}
					last = e
				}
			}
		}
	}
}

// TestStochastic checks that the mean of many roundings is the value, and that a seed repeats.
func TestStochastic(t *testing.T) {
	w := tensor.New(2000, 3)
	for r := range w.Rows {
		copy(w.Row(r), []float32{127, 10.25, -3.875}) // the first sets the scale to 1
	}
	s := quant.Scheme{Range: quant.Int8, Symmetric: true, Rounding: quant.Rounding{Stochastic: true, Seed: 7}}
	q := s.Quantize(w)
	var sum [3]float64
	for i, c := range q.Codes {
		sum[i%3] += float64(c)
	}
	for j, want := range []float64{127, 10.25, -3.875} {
		// The standard deviation of the mean is at most 0.5/√2000 = 0.011.
		if mean := sum[j] / 2000; math.Abs(mean-want) > 0.045 {
			t.Errorf("the mean of %v is %v", want, mean)
		}
	}
	if !slices.Equal(q.Codes, s.Quantize(w).Codes) {
		t.Error("the same seed gives other codes")
	}
	// A row's codes depend on the row and the seed alone.
	if part := s.Quantize(w.View(0, 10, 0, 3)); !slices.Equal(part.Codes, q.Codes[:30]) {
		t.Error("fewer rows give other codes")
	}
	s.Rounding.Seed++
	if slices.Equal(q.Codes, s.Quantize(w).Codes) {
		t.Error("another seed gives the same codes")
	}
}

// TestWeightNoise compares the estimate of a block type's rounding error with the measured one.
func TestWeightNoise(t *testing.T) {
	w := weights(16, 512, 3)
	got := tensor.New(w.Rows, w.Cols)
	for _, typ := range []*ggml.Type{ggml.Q8_0, ggml.Q4_0, ggml.Q4_1, ggml.Q5_0, ggml.Q6_K, ggml.Q4_K, ggml.IQ4_NL} {
		q := quant.RTN(w, nil, typ.Grid)
		if back := typ.ParseWeight(typ.PackWeight(q), q.Rows, q.Cols); !reflect.DeepEqual(back, q) {
			t.Errorf("%s: packing changes a weight", typ.Name)
		}
		q.DecodeTo(got)
		// Scales are searched: with few weights to a block, the best of them beats evenly spread errors.
		if ratio := squaredError(w, got) / q.Noise(); ratio < 0.6 || ratio > 1.1 {
			t.Errorf("%s: squared error is %.3f of the estimate", typ.Name, ratio)
		}
	}
}
