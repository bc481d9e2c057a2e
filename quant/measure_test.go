package quant

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/tensor"
)

// TestOutputError compares with the definition, ‖X(W−Ŵ)ᵀ‖² / ‖XWᵀ‖² in float64, for shapes around those of the blocks.
func TestOutputError(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 0))
	random := func(rows, cols int, scale float64) *tensor.Matrix {
		m := tensor.New(rows, cols)
		for i := range m.Data {
			m.Data[i] = float32(scale * rng.NormFloat64())
		}
		return m
	}
	bound := 1e-5
	if kernels.Auto.Rounds() {
		bound = 1e-2 // of single rows
	}
	for _, s := range [][2]int{{1, 1}, {3, 17}, {5, energyCols}, {2, energyCols + 1}, {300, 40}, {7, 2*energyCols + 33}} {
		rows, cols := s[0], s[1]
		x, w, lost := random(20, cols, 1), random(rows, cols, 1), random(rows, cols, 0.1)
		q, h := tensor.New(rows, cols), tensor.New(cols, cols)
		for i, v := range w.Data {
			q.Data[i] = v - lost.Data[i]
		}
		gemm.Syrk(h, x, kernels.F32)
		var num, den float64
		for i := range x.Rows {
			for r := range rows {
				var a, b float64
				for j, v := range x.Row(i) {
					a += float64(v) * (float64(w.Row(r)[j]) - float64(q.Row(r)[j]))
					b += float64(v) * float64(w.Row(r)[j])
				}
				num += a * a
				den += b * b
			}
		}
		l, e := OutputEnergies(w, q, h)
		for _, c := range [][2]float64{{l, num}, {e, den}, {OutputError(w, q, h), num / den}} {
			if math.Abs(c[0]/c[1]-1) > bound {
				t.Errorf("%d×%d: %v, want %v", rows, cols, c[0], c[1])
			}
		}
	}
	if e := OutputError(tensor.New(2, 3), tensor.New(2, 3), tensor.New(3, 3)); e != 0 {
		t.Errorf("zero weights without error: %v", e)
	}
}
