package quant

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// Stats is what calibration has seen of the input that a group of linears shares.
type Stats struct {
	Tokens int
	// H = Σ x̂x̂ᵀ, in×in, is the Hessian of the squared output error up to a factor of 2. x̂ is the input that the model
	// quantized so far computes; the matrices take it, and what they multiply it with, as kernels.Auto rounds them.
	H *tensor.Matrix
	// What the original model has and the quantized one lacks is known, if at all, in one of two ways. Drift =
	// Σ (x−x̂)x̂ᵀ, in×in, where x is the original's input, serves all linears W of a group. Shortfall =
	// Σ (W(x−x̂) + r−r̂)x̂ᵀ, out×in, is that of one linear, whose output is added to a residual connection; r and r̂ are both
	// models' values of it.
	Drift, Shortfall *tensor.Matrix
	// Sum = Σ x̂, DriftSum = Σ (x−x̂) and ShortfallSum = Σ (W(x−x̂) + r−r̂) are those of single values.
	Sum, DriftSum, ShortfallSum []float64
	// Apart: what a batch adds to the matrices is summed by itself before it is added, as if Stats of its own had been and Add. What H has
	// above its diagonal is undefined then, until Join.
	Apart bool
}

// NewStats returns empty statistics of inputs with in features.
func NewStats(in int) *Stats { return &Stats{H: tensor.New(in, in), Sum: make([]float64, in)} }

// StatsMemory returns how many bytes the matrices of Stats take: H; if the original model is known, Drift too, or the
// Shortfall of out outputs where they are added to a residual connection.
func StatsMemory(in, out int, original, adds bool) int64 {
	n := int64(in)
	values := n * n
	switch {
	case original && adds:
		values += n * int64(out)
	case original:
		values += n * n
	}
	return 4 * values
}

// Observe adds a batch of inputs, tokens×in.
func (s *Stats) Observe(x *tensor.Matrix) {
	if s.Apart {
		gemm.AddSyrkLower(s.H, x, kernels.Auto)
	} else {
		gemm.Syrk(s.H, x, kernels.Auto)
	}
	s.addRows(s.Sum, x)
	s.Tokens += x.Rows
}

// Join says that no batch is to come.
func (s *Stats) Join() {
	if s.Apart {
		gemm.Mirror(s.H)
	}
	s.Apart = false
}

// ObserveDrift adds to Drift what inputs x lack, drift; both tokens×in.
func (s *Stats) ObserveDrift(drift, x *tensor.Matrix) { s.observe(&s.Drift, &s.DriftSum, drift, x) }

// ObserveShortfall adds to Shortfall what the sum of residual connection and output lacks, missing, tokens×out, if the
// original weights see inputs x, tokens×in.
func (s *Stats) ObserveShortfall(missing, x *tensor.Matrix) {
	s.observe(&s.Shortfall, &s.ShortfallSum, missing, x)
}

func (s *Stats) observe(product **tensor.Matrix, sum *[]float64, d, x *tensor.Matrix) {
	if *product == nil {
		*product, *sum = tensor.New(d.Cols, x.Cols), make([]float64, d.Cols)
	}
	if s.Apart {
		gemm.AddTN(*product, d, x, kernels.Auto)
	} else {
		gemm.TN(*product, 1, d, x, kernels.Auto)
	}
	s.addRows(*sum, d)
}

// addRows adds the rows of x to sum.
func (s *Stats) addRows(sum []float64, x *tensor.Matrix) {
	if !s.Apart {
		addRows(sum, x)
		return
	}
	own := make([]float64, len(sum))
	addRows(own, x)
	addSums(&sum, own)
}

// ForRows returns the statistics as they are for rows [lo,hi) of a linear: they share everything with s.
func (s *Stats) ForRows(lo, hi int) *Stats {
	if s.Shortfall == nil || lo == 0 && hi == s.Shortfall.Rows {
		return s
	}
	part := *s
	part.Shortfall = s.Shortfall.View(lo, hi, 0, s.Shortfall.Cols)
	part.ShortfallSum = s.ShortfallSum[lo:hi]
	return &part
}

// OfRows is ForRows of rows in any order, of which it has copies.
func (s *Stats) OfRows(rows []int) *Stats {
	if s.Shortfall == nil {
		return s
	}
	part := *s
	part.Shortfall, part.ShortfallSum = tensor.New(len(rows), s.Shortfall.Cols), make([]float64, len(rows))
	for i, r := range rows {
		copy(part.Shortfall.Row(i), s.Shortfall.Row(r))
		part.ShortfallSum[i] = s.ShortfallSum[r]
	}
	return &part
}

// Importance returns the mean square of each input feature: the Hessian's diagonal over the tokens.
func (s *Stats) Importance() []float32 {
	d := make([]float32, s.H.Rows)
	for i := range d {
		d[i] = s.H.Data[i*s.H.Stride+i] / float32(max(s.Tokens, 1))
	}
	return d
}

// MeanShift returns the mean output error E[(W−Ŵ)x̂ + W(x−x̂) + r−r̂]; terms that were not observed count as zero. Added to
// the bias it makes the outputs' means agree (Nagel et al., arXiv:1906.04721, section 4.2). w and q are out×in.
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
		if s.ShortfallSum != nil {
			sum += s.ShortfallSum[i]
		}
		shift[i] = float32(sum / float64(max(s.Tokens, 1)))
	}
	return shift
}

// addRows adds the rows of x to sum, which come from some in float32 at a time: single additions in float64 took 8% of a run.
func addRows(sum []float64, x *tensor.Matrix) {
	const block = 32 // rows
	// Each column belongs to one goroutine, so its sum does not depend on their number.
	kernels.Parallel(x.Cols, 256, func(lo, hi int) {
		part := make([]float32, hi-lo)
		for t := 0; t < x.Rows; t += block {
			clear(part)
			for u := t; u < min(t+block, x.Rows); u++ {
				vector.Axpy(part, 1, x.Row(u)[lo:hi])
			}
			for j, v := range part {
				sum[lo+j] += float64(v)
			}
		}
	})
}
