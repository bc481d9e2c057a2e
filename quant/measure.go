package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// OutputError returns ‖X(W−Ŵ)ᵀ‖² / ‖XWᵀ‖² for H = XᵀX, computed as tr(ΔW·H·ΔWᵀ) / tr(W·H·Wᵀ). w and q are out×in.
// Zero weights without error give 0, with error 1.
func OutputError(w, q, h *tensor.Matrix) float64 {
	return ratio(OutputEnergies(w, q, h))
}

// OutputEnergies returns ‖X(W−Ŵ)ᵀ‖² and ‖XWᵀ‖², which can be added up over parts of a weight's rows. Neither is negative:
// H is positive semidefinite but for rounding.
func OutputEnergies(w, q, h *tensor.Matrix) (lost, whole float64) {
	// Rows of W−Ŵ and of W together, as many as keep the scratch memory small and repay reading H.
	const most = 256
	rows := min(most, w.Rows)
	both, sums := tensor.New(2*rows, w.Cols), make([]float64, 2*rows)
	scratch := tensor.New(2*rows, min(energyCols, w.Cols))
	for r0 := 0; r0 < w.Rows; r0 += rows {
		n := min(rows, w.Rows-r0)
		kernels.Parallel(n, 16, func(lo, hi int) {
			for i := lo; i < hi; i++ {
				copy(both.Row(i), w.Row(r0+i))
				vector.Axpy(both.Row(i), -1, q.Row(r0+i))
				copy(both.Row(n+i), w.Row(r0+i))
			}
		})
		energies(sums[:2*n], both.View(0, 2*n, 0, w.Cols), h, scratch)
		for i := range n {
			lost += sums[i]
			whole += sums[n+i]
		}
	}
	return max(lost, 0), max(whole, 0)
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

// energyCols is how many columns of H energies takes at a time.
const energyCols = 512

// energies sets sums to aHaᵀ for each row a. H is symmetric: the blocks above one on the diagonal count twice, those below
// it are not read. scratch is as high as a and energyCols wide. Products round as kernels.Auto: what that makes of a sum over many rows
// is less than the figures of it that anyone looks at.
func energies(sums []float64, a, h, scratch *tensor.Matrix) {
	clear(sums)
	for j0 := 0; j0 < a.Cols; j0 += energyCols {
		j1 := min(j0+energyCols, a.Cols)
		block, y := a.View(0, a.Rows, j0, j1), scratch.View(0, a.Rows, 0, j1-j0)
		add := func(from, to int, times float64) {
			if from == to {
				return
			}
			y.Zero()
			gemm.NN(y, 1, a.View(0, a.Rows, from, to), h.View(from, to, j0, j1), kernels.Auto)
			kernels.Parallel(a.Rows, 16, func(lo, hi int) {
				for r := lo; r < hi; r++ {
					var sum float64
					for j, v := range block.Row(r) {
						sum += float64(v) * float64(y.Row(r)[j])
					}
					sums[r] += times * sum
				}
			})
		}
		add(0, j0, 2)
		add(j0, j1, 1)
	}
}
