package awq

import (
	"context"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// clipSteps: weights are clipped at 1, 0.95, ..., 0.55 of their group's largest magnitude (the authors' auto_clip_block
// tries the first half of 20 steps).
const (
	clipSteps = 10
	clipStep  = 0.05
)

// Quantize rounds w, out×in, to nearest on g's grid. Before a block's scales are fitted, the weights of each of its groups
// are clipped at the share of their largest magnitude that gives the smallest error of what the groups add to the
// output, by the Hessian of their own inputs; a block that clipping does not help is rounded as it is.
func Quantize(ctx context.Context, w *tensor.Matrix, in *quant.Stats, g *quant.Grid) (*quant.Weight, error) {
	q := quant.NewWeight(g, w.Rows, w.Cols)
	importance := in.Importance()
	for i := range w.Cols / g.Block {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c0, c1 := i*g.Block, (i+1)*g.Block
		hessians := make([]*tensor.Matrix, g.Groups())
		for k := range hessians {
			j := c0 + k*g.Group
			hessians[k] = in.H.View(j, j+g.Group, j, j+g.Group).Clone()
		}
		kernels.Parallel(w.Rows, 4, func(lo, hi int) {
			c := newClipper(g, hessians, importance[c0:c1])
			for r := lo; r < hi; r++ {
				b := q.Block(r, i)
				c.round(&b, w.Row(r)[c0:c1])
				q.SetBlock(r, i, &b)
			}
		})
	}
	return q, nil
}

// clipper has the scratch memory for one block, which is rounded clipped in every way at once.
type clipper struct {
	grid        *quant.Grid
	hessians    []*tensor.Matrix // of each group
	importances []float32        // the block's, for every trial
	clipped     []float32        // of all trials
	values      []float32
	trials      []quant.Block
}

func newClipper(g *quant.Grid, hessians []*tensor.Matrix, importance []float32) *clipper {
	n := g.Groups()
	c := &clipper{grid: g, hessians: hessians, values: make([]float32, g.Block)}
	c.clipped = make([]float32, clipSteps*g.Block)
	for range clipSteps {
		c.importances = append(c.importances, importance...)
		c.trials = append(c.trials,
			quant.Block{Sc: make([]int8, n), M: make([]int8, n), Codes: make([]int8, g.Block)})
	}
	return c
}

// round sets b to the best of the clipped blocks.
func (c *clipper) round(b *quant.Block, w []float32) {
	for step := range clipSteps {
		c.clip(c.clipped[step*len(w):(step+1)*len(w)], w, 1-clipStep*float32(step))
	}
	c.grid.Round(c.trials, c.clipped, c.importances)
	best := &c.trials[0]
	least := c.error(best, w)
	for step := range c.trials[1:] {
		t := &c.trials[1+step]
		if e := c.error(t, w); e < least {
			best, least = t, e
		}
	}
	b.D, b.DMin = best.D, best.DMin
	copy(b.Sc, best.Sc)
	copy(b.M, best.M)
	copy(b.Codes, best.Codes)
}

// clip sets dst to w, each group clipped at the share of its largest magnitude.
func (c *clipper) clip(dst, w []float32, share float32) {
	for lo := 0; lo < len(w); lo += c.grid.Group {
		group := w[lo : lo+c.grid.Group]
		var limit float32
		for _, v := range group {
			limit = max(limit, v, -v)
		}
		limit *= share
		for j, v := range group {
			dst[lo+j] = min(max(v, -limit), limit)
		}
	}
}

// error returns Σ δᵀHδ over the groups, δ being what b's values differ from w.
func (c *clipper) error(b *quant.Block, w []float32) float32 {
	b.Decode(c.grid, c.values)
	for j, v := range w {
		c.values[j] -= v
	}
	var sum float32
	for k, h := range c.hessians {
		d := c.values[k*c.grid.Group : (k+1)*c.grid.Group]
		for j, v := range d {
			sum += v * kernels.Dot(h.Row(j), d)
		}
	}
	return sum
}
