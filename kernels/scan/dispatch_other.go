//go:build !amd64 || purego

package scan

import "github.com/llmq/llmq/tensor"

// weigh sets y = w_0 + Σ_i w_{k+i} ⊙ x_{r+i·step} over all rows of w from k < w.Rows on.
func weigh(y []float32, w, x *tensor.Matrix, k, r, step int) { weighGo(y, w, x, k, r, step, 0) }
