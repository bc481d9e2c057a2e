package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// OutputError returns ‖X(W−Ŵ)ᵀ‖² / ‖XWᵀ‖² for H = XᵀX, computed as tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ). w and q are out×in.
// Zero weights without error give 0, with error 1.
func OutputError(w, q, h *tensor.Matrix) float64 {
	return ratio(OutputEnergies(w, q, h))
}

// OutputEnergies returns ‖X(W−Ŵ)ᵀ‖² and ‖XWᵀ‖², which can be added up over parts of a weight's rows.
func OutputEnergies(w, q, h *tensor.Matrix) (lost, whole float64) {
	return energy(difference(w, q), h), energy(w, h)
}

// WeightError returns ‖W−Ŵ‖² / ‖W‖², the error that is known without calibration.
func WeightError(w, q *tensor.Matrix) float64 {
	var num, den float64
	for r := range w.Rows {
		a, b := w.Row(r), q.Row(r)
		for j, v := range a {
			d := float64(v) - float64(b[j])
			num += d * d
			den += float64(v) * float64(v)
		}
	}
	return ratio(num, den)
}

func ratio(num, den float64) float64 {
	if den == 0 {
		if num == 0 {
			return 0
		}
		return 1
	}
	return num / den
}

func difference(w, q *tensor.Matrix) *tensor.Matrix {
	d := tensor.New(w.Rows, w.Cols)
	for r := range w.Rows {
		a, b, out := w.Row(r), q.Row(r), d.Row(r)
		for j := range out {
			out[j] = a[j] - b[j]
		}
	}
	return d
}

// energyRows bounds the scratch memory of energy.
const energyRows = 256

// energy returns tr(A·H·Aᵀ), at least 0: H is positive semidefinite but for rounding.
func energy(a, h *tensor.Matrix) float64 {
	var sum float64
	scratch := tensor.New(min(energyRows, a.Rows), h.Cols)
	for r0 := 0; r0 < a.Rows; r0 += energyRows {
		r1 := min(r0+energyRows, a.Rows)
		part := a.View(r0, r1, 0, a.Cols)
		ah := scratch.View(0, r1-r0, 0, h.Cols)
		kernels.MatMulF32(ah, part, h) // H is symmetric: A·Hᵀ = A·H
		for r := range part.Rows {
			x, y := part.Row(r), ah.Row(r)
			for j, v := range x {
				sum += float64(v) * float64(y[j])
			}
		}
	}
	return max(sum, 0)
}
