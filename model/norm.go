package model

import (
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/tensor"
)

// Norm normalises each token's features: RMSNorm (Zhang and Sennrich, arXiv:1910.07467), x·W/√(mean(x²)+Eps), or
// LayerNorm (Ba et al., arXiv:1607.06450), (x−mean(x))·W/√(var(x)+Eps)+B. A nil Norm is the identity.
type Norm struct {
	Name  string    // of the weights' tensor, "" if there is none
	W, B  []float32 // B nil: none
	Eps   float32
	Layer bool // LayerNorm
	// PerHead says that W has weights for each of several heads, one head after the other.
	PerHead bool
}

// apply sets dst to the normalised rows of x. dst may be x.
func (n *Norm) apply(dst, x *tensor.Matrix) {
	byRows(x.Rows, func(lo, hi int) { n.rows(dst.View(lo, hi, 0, dst.Cols), x.View(lo, hi, 0, x.Cols)) })
}

// rows is apply on one goroutine.
func (n *Norm) rows(dst, x *tensor.Matrix) {
	if n.Layer {
		elementwise.LayerNorm(dst, x, n.W, n.B, n.Eps)
		return
	}
	elementwise.RMSNorm(dst, x, n.W, n.Eps)
}

// heads normalises every head of x, rows×(heads·headDim), in place.
func (n *Norm) heads(x *tensor.Matrix, headDim int) {
	if n.PerHead {
		for lo := 0; lo < x.Cols; lo += headDim {
			one := Norm{W: n.W[lo : lo+headDim], Eps: n.Eps, Layer: n.Layer}
			head := x.View(0, x.Rows, lo, lo+headDim)
			one.rows(head, head)
		}
		return
	}
	for t := range x.Rows {
		heads := tensor.FromSlice(x.Cols/headDim, headDim, x.Row(t))
		n.rows(heads, heads)
	}
}

// Unweighted returns an RMSNorm over n features whose weights are all 1.
func Unweighted(n int, eps float32) *Norm {
	w := make([]float32, n)
	for i := range w {
		w[i] = 1
	}
	return &Norm{W: w, Eps: eps}
}
