package elementwise

import (
	"math"
	"testing"

	"github.com/llmq/llmq/tensor"
)

// TestTableGELU: the table is within its roundings of GELU, exact beyond ±10, and gated as GELUMul is.
func TestTableGELU(t *testing.T) {
	x := tensor.New(1, 4001)
	for i := range x.Data {
		x.Data[i] = float32(i-2000) / 150
	}
	up := tensor.New(1, x.Cols)
	for i := range up.Data {
		up.Data[i] = float32(i%7) - 3
	}
	got, gated := tensor.New(1, x.Cols), tensor.New(1, x.Cols)
	TableGELU(got, x)
	TableGELUMul(gated, x, up)
	for i, v := range x.Data {
		f := float64(v)
		want := 0.5 * f * (1 + math.Tanh(math.Sqrt(2/math.Pi)*f*(1+0.044715*f*f)))
		switch {
		case v <= -10:
			want = 0
		case v >= 10:
			want = f
		}
		// Two roundings to 11 bits, the first of which GELU's slope, at most 1.13, carries on.
		if d := math.Abs(float64(got.Data[i]) - want); d > math.Abs(f)/1000+1e-6 || math.Abs(f) >= 10 && d > 0 {
			t.Errorf("GELU(%v) is %v, want %v", v, got.Data[i], want)
		}
		if gated.Data[i] != got.Data[i]*up.Data[i] {
			t.Errorf("gated(%v) is %v, want %v", v, gated.Data[i], got.Data[i]*up.Data[i])
		}
	}
}
