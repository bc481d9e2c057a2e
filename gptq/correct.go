package gptq

import (
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/linalg"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Correct returns the weights whose outputs on the quantized model's inputs x̂ come closest, in the mean square, to what
// the original model computes there: argmin Σ ‖W'x̂ − (Wx + r − r̂)‖², where x is the input that the original model has
// in x̂'s place and r − r̂ what has gone wrong so far on the residual connection that the output is added to. Quantizing
// W' instead of W thus makes up for the errors of everything before it, as far as they can be told from x̂ (Li et al.,
// GPTAQ, arXiv:2504.02692; Arai and Ichikawa, QEP, arXiv:2504.09629).
//
// With S = Σ (W(x−x̂) + r−r̂)x̂ᵀ, which is in.Shortfall, or W·in.Drift where there is no residual connection, the solution
// is W + S·H⁻¹. It is estimated from in.Tokens tokens with as many unknowns as a row has columns, so it fits their noise
// too; the correction is shrunk by that share. Without either w itself is returned.
func (f *Factor) Correct(w *tensor.Matrix, in *quant.Stats) *tensor.Matrix {
	return f.correct(w, in, false)
}

// correct is Correct. takes: see quant.Job; of in, which may be a view of some rows, Shortfall is nil then.
func (f *Factor) correct(w *tensor.Matrix, in *quant.Stats, takes bool) *tensor.Matrix {
	if !Correctable(w.Cols, in.Tokens) {
		if takes {
			in.Shortfall = nil
		}
		return w
	}
	share := 1 - float64(w.Cols)/float64(in.Tokens)
	var d *tensor.Matrix
	switch {
	case in.Shortfall != nil && takes:
		d, in.Shortfall = in.Shortfall, nil
		defer func() { w.Data = nil }()
	case in.Shortfall != nil:
		d = in.Shortfall.Clone()
	case in.Drift != nil:
		d = tensor.New(w.Rows, w.Cols)
		// Drift is made of inputs in bfloat16 as it is, and so many tokens tell no more of it.
		gemm.NN(d, 1, w, in.Drift, kernels.Auto)
	default:
		return w
	}
	f.solve(d)
	kernels.Parallel(d.Rows, rowGrain, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			out, row := d.Row(r), w.Row(r)
			for j, v := range row {
				out[j] = v + float32(share)*out[j]
			}
		}
	})
	return d
}

// correctRows corrects some rows of w in place, to the same as correct does with all of them: in is of all.
func (f *Factor) correctRows(w *tensor.Matrix, in *quant.Stats, rows []int) {
	for some := range slices.Chunk(rows, bandRows) { // more would take more memory
		of := tensor.New(len(some), w.Cols)
		for i, r := range some {
			copy(of.Row(i), w.Row(r))
		}
		of = f.correct(of, in.OfRows(some), true)
		for i, r := range some {
			copy(w.Row(r), of.Row(i))
		}
	}
}

// Correctable says whether so many tokens tell more of the errors before a linear of in columns than noise, so that Correct reads
// Drift and Shortfall.
func Correctable(in, tokens int) bool { return tokens > in }

// solve sets d, rows×in with its columns in their natural order, to d·H⁻¹.
func (f *Factor) solve(d *tensor.Matrix) {
	for r0 := 0; r0 < d.Rows; r0 += bandRows {
		f.solveBand(d.View(r0, min(r0+bandRows, d.Rows), 0, d.Cols))
	}
}

// solveBand is solve for as many rows as a second matrix of them may have.
func (f *Factor) solveBand(d *tensor.Matrix) {
	p, giveBack := f.borrow(d.Rows, d.Cols)
	defer giveBack()
	kernels.Parallel(d.Rows, rowGrain, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			src, dst := d.Row(r), p.Row(r)
			for i, c := range f.order {
				dst[i] = src[c]
			}
		}
	})
	linalg.Solve(p, f.l)
	kernels.Parallel(d.Rows, rowGrain, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			src, dst := p.Row(r), d.Row(r)
			for i, c := range f.order {
				dst[c] = src[i]
			}
		}
	})
}
