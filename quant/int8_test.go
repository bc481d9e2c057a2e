package quant_test

import (
	"math"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels/i8"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestInt8 holds both ways to what Affine says of every value.
func TestInt8(t *testing.T) {
	x := weights(5, 77, 9)
	clear(x.Row(1))
	copy(x.Row(2), []float32{127, 0.5, -0.5, 1.5, -1.5, 0.49999997, 126.5})
	for j := 7; j < x.Cols; j++ {
		x.Row(2)[j] = 0
	}
	copy(x.Row(3), []float32{math.MaxFloat32, -math.MaxFloat32, 1e-44})
	skip := make([]bool, x.Cols)
	skip[0], skip[20] = true, true
	for _, s := range [][]bool{nil, skip} {
		got := i8.New(x.Rows, x.Cols, x.Cols)
		quant.Int8Rows(got, x, s)
		for r := range x.Rows {
			var absmax float32
			for j, v := range x.Row(r) {
				if s == nil || !s[j] {
					absmax = max(absmax, v, -v)
				}
			}
			a := quant.Int8.Symmetric(absmax)
			if got.Scale[r] != a.Scale {
				t.Errorf("row %d: scale %v, want %v", r, got.Scale[r], a.Scale)
			}
			for j, v := range x.Row(r) {
				want := a.Code(v)
				if s != nil && s[j] {
					want = 0
				}
				if c := got.Row(r)[j]; int(c) != want {
					t.Errorf("[%d %d]: %v has code %d, want %d", r, j, v, c, want)
				}
			}
		}
	}
	for _, scale := range []float32{0, 0.01, 1} {
		got := i8.New(x.Rows, x.Cols, x.Cols)
		quant.Int8Static(got, x, scale)
		a := quant.Affine{Scale: scale, Range: quant.Int8}
		for r := range x.Rows {
			for j, v := range x.Row(r) {
				if c := got.Row(r)[j]; int(c) != a.Code(v) || got.Scale[r] != scale {
					t.Errorf("scale %v, [%d %d]: %v has code %d, want %d", scale, r, j, v, c, a.Code(v))
				}
			}
		}
	}
}

func TestWeightInt8(t *testing.T) {
	w := weights(3, 96, 10)
	q := quant.RTN(w, nil, ggml.Q8_0.Grid)
	want := tensor.New(3, 96)
	q.DecodeTo(want)
	m := q.Int8()
	for r := range m.Rows {
		for j, c := range m.Row(r) {
			if v := m.Scales(r)[j/32] * float32(c); v != want.Row(r)[j] {
				t.Errorf("[%d %d] is %v, want %v", r, j, v, want.Row(r)[j])
			}
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a weight with minima is accepted")
		}
	}()
	quant.RTN(w, nil, ggml.Q4_1.Grid).Int8()
}
