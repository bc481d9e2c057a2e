package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Stats is what calibration has seen of the input that a group of linears shares.
type Stats struct {
	Tokens int
	// H = Σ x̂x̂ᵀ, in×in, is the Hessian of the squared output error up to a factor of 2. x̂ is the input that the model
	// quantized so far computes.
	H *tensor.Matrix
	// Drift = Σ (x−x̂)x̂ᵀ, in×in, and Residual = Σ (r−r̂)x̂ᵀ, out×in, tell how far the quantized model is from the original
	// one: x is the original's input, r and r̂ are both models' values of the residual connection to which the linear's
	// output is added. nil where they are not known, or there is no such connection.
	Drift, Residual *tensor.Matrix

	diff *tensor.Matrix
}

// NewStats returns empty statistics of inputs with in features.
func NewStats(in int) *Stats { return &Stats{H: tensor.New(in, in)} }

// Observe adds a batch of inputs, tokens×in.
func (s *Stats) Observe(x *tensor.Matrix) {
	kernels.SyrkTo(s.H, x)
	s.Tokens += x.Rows
}

// ObserveDrift adds to Drift what the original model has, want, where the quantized one has x; both tokens×in.
func (s *Stats) ObserveDrift(want, x *tensor.Matrix) {
	if s.Drift == nil {
		s.Drift = tensor.New(x.Cols, x.Cols)
	}
	kernels.GemmTN(s.Drift, 1, s.subtract(want, x), x)
}

// ObserveResidual adds to Residual the values of the residual connection, r in the quantized model and want in the
// original one, tokens×out, for inputs x, tokens×in.
func (s *Stats) ObserveResidual(want, r, x *tensor.Matrix) {
	if s.Residual == nil {
		s.Residual = tensor.New(r.Cols, x.Cols)
	}
	kernels.GemmTN(s.Residual, 1, s.subtract(want, r), x)
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
