package quant_test

import (
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

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

// TestWeightNoise compares the estimate of a block type's rounding error with the measured one.
func TestWeightNoise(t *testing.T) {
	w := weights(16, 512, 3)
	got := tensor.New(w.Rows, w.Cols)
	for _, typ := range []*ggml.Type{ggml.Q8_0, ggml.Q4_0, ggml.Q4_1, ggml.Q5_0, ggml.Q6_K, ggml.Q4_K, ggml.IQ4_NL,
		ggml.IQ1_M, ggml.IQ2_XXS, ggml.IQ2_S, ggml.IQ3_XXS, ggml.IQ3_S} {
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

// TestMoves compares what MoveGroups finds with all scales, or with all minimums where there are any, and what MoveBlock
// finds with the float16 values beside it.
func TestMoves(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 1))
	for _, typ := range []*ggml.Type{ggml.Q3_K, ggml.Q6_K, ggml.IQ4_XS, ggml.Q2_K, ggml.Q4_K} {
		g := typ.Grid.(*quant.Affine)
		n := g.Groups()
		for range 1000 {
			b := quant.Block{D: tensor.RoundF16(float32(rng.NormFloat64())), Sc: make([]int8, n), M: make([]int8, n)}
			b.Sc[0] = int8(g.Scales.Min + rng.IntN(g.Scales.Max-g.Scales.Min+1))
			single := func(v float64) float64 { return float64(float32(v)) }
			e := quant.Quadratic{P: single(10 * rng.NormFloat64()), A: single(1 + rng.Float64())}
			if g.HasMinimum() {
				b.DMin, b.M[0] = tensor.RoundF16(rng.Float32()), int8(rng.IntN(g.Minimums.Max+1))
				e.Q, e.C = single(10*rng.NormFloat64()), 1+rng.Float64()
				e.B = single((2*rng.Float64() - 1) * math.Sqrt(e.A*e.C) / 2)
			}
			before := b
			before.Sc, before.M = []int8{b.Sc[0]}, []int8{b.M[0]}
			change := func(b *quant.Block, sc, m int) float64 {
				return e.At((float64(sc)-float64(before.Sc[0]))*float64(b.D), (float64(m)-float64(before.M[0]))*float64(b.DMin))
			}
			var s search.Moves
			i := rng.IntN(len(s.P))
			s.P[i], s.Q[i], s.A[i], s.B[i] = float32(e.P), -float32(e.Q), float32(e.A), -float32(e.B)
			s.Step[i], s.StepMinimum[i], s.Scale[i], s.Minimum[i] = b.D, b.DMin, float32(b.Sc[0]), float32(b.M[0])
			moved := g.MoveGroups(&s, e.C)>>i&1 != 0
			b.Sc[0], b.M[0] = int8(s.Scale[i]), int8(s.Minimum[i])
			got := change(&b, int(b.Sc[0]), int(b.M[0]))
			if moved != (got < 0) || moved == (b.Sc[0] == before.Sc[0] && b.M[0] == before.M[0]) {
				t.Fatalf("%s: %+v: moved %t, from %d, %d to %d, %d: %v", typ, e, moved, before.Sc[0], before.M[0], b.Sc[0], b.M[0], got)
			}
			scales := []int{int(b.Sc[0])} // with a minimum: the best one for the scale that was chosen
			if !g.HasMinimum() {
				scales = scales[:0]
				for sc := g.Scales.Min; sc <= g.Scales.Max; sc++ {
					scales = append(scales, sc)
				}
			}
			for _, sc := range scales {
				for m := range g.Minimums.Max + 1 {
					if e := change(&b, sc, m); moved && e < got-1e-6*math.Abs(got) || !moved && !g.HasMinimum() && e < -1e-6 {
						t.Fatalf("%s: from %d, %d to %d, %d: %v, with %d and %d %v", typ, before.Sc[0], before.M[0], b.Sc[0], b.M[0],
							got, sc, m, e)
					}
				}
			}

			e.B = 0 // each by itself
			d, dmin := b.D, b.DMin
			g.MoveBlock(&b, &e)
			at := func(x, y float32) float64 { return e.At(float64(x)-float64(d), float64(y)-float64(dmin)) }
			for _, up := range []float32{0, float32(math.Inf(1)), float32(math.Inf(-1))} {
				x := tensor.RoundF16(b.D + (math.Nextafter32(b.D, up)-b.D)*5000)
				if at(x, b.DMin) < at(b.D, b.DMin)-1e-9 {
					t.Fatalf("%s: %+v: d from %v to %v: %v is better", typ, e, d, b.D, x)
				}
			}
		}
	}
}
