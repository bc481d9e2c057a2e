package profile

import (
	"math"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Smoothing says what dividing an input's features by SmoothQuant's scales (Xiao et al., arXiv:2211.10438), and
// multiplying the weights' columns by them, does to the output error: s_j = max|X_j|^α / max|W_j|^(1−α).
type Smoothing struct {
	// Alpha is the α with the least error; nil if none lowers the error by more than SmoothingGain.
	Alpha *float64 `json:"alpha"`
	// Plain is the mean relative output error of the input's linears as they are, Errors those by α.
	Plain  float64      `json:"plain_error"`
	Errors []AlphaError `json:"errors"`
}

// AlphaError is the error for one α.
type AlphaError struct {
	Alpha float64 `json:"alpha"`
	Error float64 `json:"error"`
}

const (
	// SmoothingGain is the least share of the error that smoothing must save to be recommended.
	SmoothingGain = 0.02
	// alphaSteps is how many steps α takes from 0 to 1.
	alphaSteps = 10
	// smoothingRows bounds the rows of each weight that the search looks at, evenly spread: they are rounded by
	// themselves, so some tell about all.
	smoothingRows = 256
)

// smoothing searches α for the linears that read one input.
func (r *run) smoothing(weights []*tensor.Matrix, in *watched, importance []float32) Smoothing {
	parts := make([]*tensor.Matrix, len(weights))
	wMax := make([]float64, len(importance))
	for i, w := range weights {
		for row := range w.Rows {
			for j, v := range w.Row(row) {
				wMax[j] = max(wMax[j], math.Abs(float64(v)))
			}
		}
		parts[i] = someRows(w, smoothingRows)
	}
	t := r.typeFor(len(importance))
	s := Smoothing{Plain: meanError(t, parts, in.stats, importance, nil)}
	best := s.Plain * (1 - SmoothingGain)
	for k := range alphaSteps + 1 {
		alpha := float64(k) / alphaSteps
		e := meanError(t, parts, in.stats, importance, smoothingScales(in.o.AbsMax, wMax, alpha))
		s.Errors = append(s.Errors, AlphaError{alpha, e})
		if e < best {
			best, s.Alpha = e, &alpha
		}
	}
	return s
}

// someRows returns n rows of w, evenly spread, or w itself if it has no more.
func someRows(w *tensor.Matrix, n int) *tensor.Matrix {
	if w.Rows <= n {
		return w
	}
	out := tensor.New(n, w.Cols)
	for i := range n {
		copy(out.Row(i), w.Row(i*w.Rows/n))
	}
	return out
}

// smoothingScales are SmoothQuant's, divided by their geometric mean, which changes nothing but keeps them near 1. A
// feature or column of zeros has scale 1.
func smoothingScales(xMax []float32, wMax []float64, alpha float64) []float32 {
	logs := make([]float64, len(wMax))
	var sum float64
	n := 0
	for j := range logs {
		if xMax[j] > 0 && wMax[j] > 0 {
			logs[j] = alpha*math.Log(float64(xMax[j])) - (1-alpha)*math.Log(wMax[j])
			sum += logs[j]
			n++
		}
	}
	scales := make([]float32, len(logs))
	for j := range scales {
		scales[j] = 1
		if xMax[j] > 0 && wMax[j] > 0 {
			scales[j] = float32(math.Exp(logs[j] - sum/float64(n)))
		}
	}
	return scales
}

// meanError is the mean relative output error of weights whose columns are scaled, rounded and scaled back.
func meanError(t *ggml.Type, weights []*tensor.Matrix, in *quant.Stats, importance, scales []float32) float64 {
	if scales != nil {
		scaled := make([]float32, len(importance))
		for j, v := range importance {
			scaled[j] = v / scales[j] / scales[j]
		}
		importance = scaled
	}
	var sum float64
	for _, w := range weights {
		q := w
		if scales != nil {
			q = w.Clone()
			eachScaled(q, func(v, s float32) float32 { return v * s }, scales)
		}
		q = roundTrip(t, q, importance)
		if scales != nil {
			eachScaled(q, func(v, s float32) float32 { return v / s }, scales)
		}
		sum += quant.OutputError(w, q, in.H)
	}
	return sum / float64(len(weights))
}

func eachScaled(m *tensor.Matrix, f func(v, s float32) float32, scales []float32) {
	for i := range m.Rows {
		row := m.Row(i)
		for j, v := range row {
			row[j] = f(v, scales[j])
		}
	}
}
