package quant_test

import (
	"math"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels/i8"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// int8Code is x/scale rounded, ties away from 0, within −127..127.
func int8Code(x, scale float32) int {
	if scale == 0 {
		return 0
	}
	return int(min(max(math.Round(float64(x/scale)), -127), 127))
}

// TestInt8 holds both ways to int8Code.
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
			scale := absmax / 127
			if got.Scale[r] != scale {
				t.Errorf("row %d: scale %v, want %v", r, got.Scale[r], scale)
			}
			for j, v := range x.Row(r) {
				want := int8Code(v, scale)
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
		for r := range x.Rows {
			for j, v := range x.Row(r) {
				if c := got.Row(r)[j]; int(c) != int8Code(v, scale) || got.Scale[r] != scale {
					t.Errorf("scale %v, [%d %d]: %v has code %d, want %d", scale, r, j, v, c, int8Code(v, scale))
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
