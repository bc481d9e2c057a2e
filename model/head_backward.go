package model

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

const (
	// headLogits is how many logits exist at a time on the way back through a head.
	headLogits = 1 << 25
	// headRows is how many of the output weights' rows are decoded at a time.
	headRows = 4096
)

// Backward sets dx, tokens×Width, to the gradient of Σ a_j·log p_j at the last layer's output x, tokens×Width, p being the
// model's predictions. weigh is shown those of token t of x, which sum to about 1, and sets their weights a, which are to be
// taken as constants: a 1 for a label and zeros for the rest make it a language model's loss. It may be called from several
// goroutines.
func (h *Head) Backward(st *State, dx, x *tensor.Matrix, weigh func(t int, a, p []float32)) {
	step := max(16, headLogits/h.m.Vocab)
	for lo := 0; lo < x.Rows; lo += step {
		hi := min(lo+step, x.Rows)
		h.backward(st, dx.View(lo, hi, 0, dx.Cols), x.View(lo, hi, 0, x.Cols), func(t int, a, p []float32) {
			weigh(lo+t, a, p)
		})
	}
}

func (h *Head) backward(st *State, dx, x *tensor.Matrix, weigh func(t int, a, p []float32)) {
	in := st.Scratch("back head in", x.Rows, h.m.Dim)
	h.In(in, x)
	logits := st.Scratch("back logits", x.Rows, h.m.Vocab)
	h.Part(logits, in, 0, h.m.Vocab)
	var slopes *tensor.Matrix // of the logits in what the softcap makes of them
	scale, c := h.m.ends.LogitScale, h.m.ends.Softcap
	if scale == 0 {
		scale = 1
	}
	if c != 0 {
		slopes = st.Scratch("back slopes", logits.Rows, logits.Cols)
	}
	byRows(logits.Rows, func(lo, hi int) {
		a := make([]float32, logits.Cols)
		for t := lo; t < hi; t++ {
			row := logits.Row(t)
			if c != 0 {
				for j, v := range row {
					slopes.Row(t)[j] = 1 - v/c*v/c
				}
			}
			softmaxRow(row)
			weigh(t, a, row)
			elementwise.Scale(row, -scale*float32(elementwise.Sum(a))) // of Σ a_k·log p_k by logit j: a_j − p_j·Σ a_k
			vector.Axpy(row, scale, a)
			if c != 0 {
				for j, s := range slopes.Row(t) {
					row[j] *= s
				}
			}
		}
	})
	dIn := st.Scratch("back head", x.Rows, h.m.Dim)
	zero(dIn)
	for lo := 0; lo < h.m.Vocab; lo += headRows {
		hi := min(lo+headRows, h.m.Vocab)
		gemm.NN(dIn, 1, logits.View(0, logits.Rows, lo, hi), h.Linear.Part(lo, hi).decoded(st), st.precision)
	}
	dx.Zero()
	grad, hidden := dx.View(0, dx.Rows, 0, h.m.Dim), x.View(0, x.Rows, 0, h.m.Dim)
	if h.Norm != nil {
		h.Norm.back(grad, hidden, dIn)
		return
	}
	copyTo(grad, 0, dIn)
}

// softmaxRow replaces logits by their softmax. Exponentials are summed in float64, 1024 at a time.
func softmaxRow(row []float32) {
	largest := elementwise.Max(row)
	var sum float64
	for i := 0; i < len(row); i += 1024 {
		part := row[i:min(i+1024, len(row))]
		sum += float64(elementwise.ExpSum(part, part, largest))
	}
	elementwise.Scale(row, float32(1/sum))
}
