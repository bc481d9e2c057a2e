package awq

import (
	"context"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// A group's weights are clipped by a smaller scale: past its reach they round to the outermost code. Shares of the fitted
// scale from 0.5 on are tried, as the authors' auto_clip_block does, and a little above it: the fit goes by the group
// alone.
const (
	clipSteps    = 13
	clipStep     = 0.05
	clipLargest  = 1.1
	ClipPasses   = 2
	clipColumns  = 128 // are searched before the errors of the others are brought up to date
	clipRowGrain = 16
)

// Quantize rounds w, out×in, to nearest on a grid, with the groups' weights clipped where that lowers the output error
// on the inputs whose Hessian in has. The paper judges each group by its own part of the output; the parts add up, so
// here each is judged by what all the others of its row have lost. On a grid of words nothing is clipped: their scales are
// searched on both sides of the one with which the largest weight just fits.
func Quantize(ctx context.Context, w *tensor.Matrix, in *quant.Stats, on quant.Grid) (*quant.Weight, error) {
	g, ok := on.(*quant.Affine)
	if !ok {
		return quant.RTN(w, in.Importance(), on), nil
	}
	q := quant.RTN(w, in.Importance(), g)
	n := w.Cols
	lost := tensor.New(w.Rows, n) // Ŵ−W
	q.DecodeTo(lost)
	for r := range w.Rows {
		vector.Axpy(lost.Row(r), -1, w.Row(r))
	}
	grad := tensor.New(w.Rows, n) // half the gradient of the error: (Ŵ−W)H
	gemm.NN(grad, 1, lost, in.H, kernels.F32)
	step := max(clipColumns, g.Block) / g.Block * g.Block
	deltas := tensor.New(w.Rows, min(step, n))
	for range ClipPasses {
		for i0 := 0; i0 < n; i0 += step {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			i1 := min(i0+step, n)
			d := deltas.View(0, w.Rows, 0, i1-i0)
			kernels.Parallel(w.Rows, clipRowGrain, func(lo, hi int) {
				c := newClipper(g, in.H.View(i0, i1, i0, i1))
				for r := lo; r < hi; r++ {
					copy(d.Row(r), lost.Row(r)[i0:i1])
					c.w, c.lost = w.Row(r)[i0:i1], lost.Row(r)[i0:i1]
					copy(c.grad, grad.Row(r)[i0:i1])
					for c0 := 0; c0 < i1-i0; c0 += g.Block {
						b := q.Block(r, (i0+c0)/g.Block)
						for k := range g.Groups() {
							c.group(&b, k, c0+k*g.Group)
						}
						q.SetBlock(r, (i0+c0)/g.Block, &b)
					}
					out := d.Row(r)
					for j, v := range c.lost {
						out[j] = v - out[j]
					}
				}
			})
			gemm.NN(grad, 1, d, in.H.View(i0, i1, 0, n), kernels.F32)
		}
	}
	return q, nil
}

// clipper clips groups of some whole blocks of one row.
type clipper struct {
	g             *quant.Affine
	h             *tensor.Matrix // the Hessian of these columns
	w, lost, grad []float32
	trial, best   []float32 // values lost in one group
	diff          []float32
}

func newClipper(g *quant.Affine, h *tensor.Matrix) *clipper {
	return &clipper{
		g: g, h: h, grad: make([]float32, h.Rows),
		trial: make([]float32, g.Group), best: make([]float32, g.Group), diff: make([]float32, g.Group),
	}
}

// group gives group k of b, whose columns start at c0, the scale with which the row's output error is least.
func (c *clipper) group(b *quant.Block, k, c0 int) {
	g := c.g
	w, lost, grad := c.w[c0:c0+g.Group], c.lost[c0:c0+g.Group], c.grad[c0:c0+g.Group]
	fitted := *b
	sc, m := b.Sc[k], b.M[k]
	best := fitted
	bestSc, bestM, least := sc, m, 0.0
	for i := range clipSteps {
		t := fitted
		t.Sc[k], t.M[k] = sc, m // b's too
		g.Shrink(&t, k, clipLargest-clipStep*float64(i))
		scale, minimum := g.Scale(&t, k)
		for j, v := range w {
			c.trial[j] = float32(scale*g.Level(g.Nearest(v, scale, minimum))) - minimum - v
		}
		if e := c.change(lost, grad, c0); e < least {
			least, best, bestSc, bestM = e, t, b.Sc[k], b.M[k]
			copy(c.best, c.trial)
		}
	}
	b.D, b.DMin = best.D, best.DMin
	b.Sc[k], b.M[k] = bestSc, bestM
	if least == 0 {
		return
	}
	scale, minimum := g.Scale(b, k)
	for j, v := range w {
		b.Codes[k*g.Group+j] = g.Nearest(v, scale, minimum)
		d := c.best[j] - lost[j]
		lost[j] = c.best[j]
		vector.Axpy(c.grad, d, c.h.Row(c0+j))
	}
}

// change returns by how much the row's error changes if the group at c0 loses c.trial in place of lost:
// with d the difference, 2d·grad + dᵀHd.
func (c *clipper) change(lost, grad []float32, c0 int) float64 {
	d := c.trial
	var sum float64
	for j := range d {
		c.diff[j] = d[j] - lost[j]
	}
	for j, v := range c.diff {
		if v != 0 {
			sum += float64(v) * float64(2*grad[j]+vector.Dot(c.h.Row(c0 + j)[c0:c0+len(d)], c.diff))
		}
	}
	return sum
}
