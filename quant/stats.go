package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Stats is what calibration has seen of the input that a group of linears shares.
type Stats struct {
	Tokens int
	// H = Σ x̂x̂ᵀ, in×in, is the Hessian of the squared output error up to a factor of 2. x̂ is the input that the model
	// quantized so far computes; the matrices take it, and what they multiply it with, as kernels.Auto rounds them.
	H *tensor.Matrix
	// Drift = Σ (x−x̂)x̂ᵀ, in×in, and Residual = Σ (r−r̂)x̂ᵀ, out×in, tell how far the quantized model is from the original
	// one: x is the original's input, r and r̂ are both models' values of the residual connection to which the linear's
	// output is added. nil where they are not known, or there is no such connection.
	Drift, Residual *tensor.Matrix
	// Sum = Σ x̂, DriftSum = Σ (x−x̂) and ResidualSum = Σ (r−r̂) are those of single values.
	Sum, DriftSum, ResidualSum []float64

	diff *tensor.Matrix
}

// NewStats returns empty statistics of inputs with in features.
func NewStats(in int) *Stats { return &Stats{H: tensor.New(in, in), Sum: make([]float64, in)} }

// Observe adds a batch of inputs, tokens×in.
func (s *Stats) Observe(x *tensor.Matrix) {
	kernels.SyrkTo(s.H, x, kernels.Auto)
	addRows(s.Sum, x)
	s.Tokens += x.Rows
}

// ObserveDrift adds to Drift what the original model has, want, where the quantized one has x; both tokens×in.
func (s *Stats) ObserveDrift(want, x *tensor.Matrix) {
	if s.Drift == nil {
		s.Drift, s.DriftSum = tensor.New(x.Cols, x.Cols), make([]float64, x.Cols)
	}
	d := s.subtract(want, x)
	kernels.GemmTN(s.Drift, 1, d, x, kernels.Auto)
	addRows(s.DriftSum, d)
}

// ObserveResidual adds to Residual the values of the residual connection, r in the quantized model and want in the
// original one, tokens×out, for inputs x, tokens×in.
func (s *Stats) ObserveResidual(want, r, x *tensor.Matrix) {
	if s.Residual == nil {
		s.Residual, s.ResidualSum = tensor.New(r.Cols, x.Cols), make([]float64, r.Cols)
	}
	d := s.subtract(want, r)
	kernels.GemmTN(s.Residual, 1, d, x, kernels.Auto)
	addRows(s.ResidualSum, d)
}

// subtract returns a−b in scratch memory.
func (s *Stats) subtract(a, b *tensor.Matrix) *tensor.Matrix {
	if s.diff == nil || cap(s.diff.Data) < a.Rows*a.Cols {
		s.diff = tensor.New(a.Rows, a.Cols)
	}
	d := tensor.FromSlice(a.Rows, a.Cols, s.diff.Data[:cap(s.diff.Data)])
	kernels.Parallel(a.Rows, 64, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			x, y, out := a.Row(i), b.Row(i), d.Row(i)
			for j := range out {
				out[j] = x[j] - y[j]
			}
		}
	})
	return d
}

// Importance returns the mean square of each input feature: the Hessian's diagonal over the tokens.
func (s *Stats) Importance() []float32 {
	d := make([]float32, s.H.Rows)
	for i := range d {
		d[i] = s.H.Data[i*s.H.Stride+i] / float32(max(s.Tokens, 1))
	}
	return d
}

// MeanShift returns the mean over the tokens of what the original model's output has and the quantized one's lacks:
// (W−Ŵ)x̂, and W(x−x̂) + r−r̂ where they are known. Added to the bias it makes the outputs' means agree (Nagel et al.,
// arXiv:1906.04721, section 4.2). w and q are out×in.
func (s *Stats) MeanShift(w, q *tensor.Matrix) []float32 {
	shift := make([]float32, w.Rows)
	for i := range shift {
		a, b := w.Row(i), q.Row(i)
		var sum float64
		for j, x := range s.Sum {
			sum += (float64(a[j]) - float64(b[j])) * x
		}
		if s.DriftSum != nil {
			for j, d := range s.DriftSum {
				sum += float64(a[j]) * d
			}
		}
		if s.ResidualSum != nil {
			sum += s.ResidualSum[i]
		}
		shift[i] = float32(sum / float64(max(s.Tokens, 1)))
	}
	return shift
}

// addRows adds the rows of x to sum.
func addRows(sum []float64, x *tensor.Matrix) {
	// Each column belongs to one goroutine, so its sum does not depend on their number.
	kernels.Parallel(x.Cols, 16, func(lo, hi int) {
		for t := range x.Rows {
			for j, v := range x.Row(t)[lo:hi] {
				sum[lo+j] += float64(v)
			}
		}
	})
}
