package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Stats is what calibration has seen of the input that a group of linears shares.
type Stats struct {
	Tokens int
	H      *tensor.Matrix // Σ xxᵀ over tokens, in×in: the Hessian of the squared output error, up to a factor of 2
}

// NewStats returns empty statistics of inputs with in features.
func NewStats(in int) *Stats { return &Stats{H: tensor.New(in, in)} }

// Observe adds a batch of inputs, tokens×in.
func (s *Stats) Observe(x *tensor.Matrix) {
	kernels.SyrkTo(s.H, x)
	s.Tokens += x.Rows
}

// Importance returns the mean square of each input feature: the Hessian's diagonal over the tokens.
func (s *Stats) Importance() []float32 {
	d := make([]float32, s.H.Rows)
	for i := range d {
		d[i] = s.H.Data[i*s.H.Stride+i] / float32(max(s.Tokens, 1))
	}
	return d
}
