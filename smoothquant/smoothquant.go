// Package smoothquant moves the difficulty of outlier channels from the inputs into the weights (Xiao et al., SmoothQuant,
// arXiv:2211.10438), which also evens out weights that were made small for inputs that are large.
package smoothquant

import (
	"context"
	"fmt"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// Smoothing is the transform with s_j = max|x_j|^α / max|w_j|^(1−α) (equation 4).
type Smoothing struct {
	// Alpha in [0,1] is the share of the inputs' ranges that moves into the weights; the paper uses 0.5 for most models.
	Alpha float64
	// Auto chooses α for each group instead, by the error of the block that follows, with the weights rounded to
	// nearest on the grid that they are meant for.
	Auto bool
}

// autoSteps: Auto tries α = 0, 0.1, ..., 1, and no smoothing at all.
const autoSteps = 10

// Transform returns the scales for g.
func (t Smoothing) Transform(ctx context.Context, g *quant.Group) (*quant.Folding, error) {
	if !(t.Alpha >= 0 && t.Alpha <= 1) {
		return nil, fmt.Errorf("smoothquant: alpha is %g, want 0 to 1", t.Alpha)
	}
	f := &quant.Folding{Transform: "smoothquant", Group: g.Name}
	if f.Skipped = g.Foldable(); f.Skipped != "" {
		return f, nil
	}
	f.Into = g.Prev.Name
	x, w := g.In.MaxAbs(), columnMax(g.Linears)
	g.Prev.Share(x)
	g.Prev.Share(w)
	f.Before = g.RoundingError(nil)
	if !t.Auto {
		f.Alpha, f.Beta = t.Alpha, 1-t.Alpha
		f.Scale = scales(x, w, f.Alpha)
		f.After = g.RoundingError(f.Scale)
		return f, nil
	}
	f.After = f.Before
	for i := range autoSteps + 1 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		alpha := float64(i) / autoSteps
		s := scales(x, w, alpha)
		if e := g.RoundingError(s); e < f.After {
			f.Scale, f.Alpha, f.Beta, f.After = s, alpha, 1-alpha, e
		}
	}
	if f.Scale == nil {
		f.Skipped = "no alpha lowers its error"
	}
	return f, nil
}

// columnMax returns the largest magnitude of each column over all linears.
func columnMax(linears []*quant.Linear) []float32 {
	largest := make([]float32, linears[0].W.Cols)
	kernels.Parallel(len(largest), 16, func(lo, hi int) {
		for _, l := range linears {
			for r := range l.W.Rows {
				for j, v := range l.W.Row(r)[lo:hi] {
					largest[lo+j] = max(largest[lo+j], v, -v)
				}
			}
		}
	})
	return largest
}

// leastShare bounds the ranges of channels that are never excited, or have no weights, as a share of the largest.
const leastShare = 1e-5

func scales(x, w []float32, alpha float64) []float32 {
	s := make([]float32, len(x))
	for j, v := range quant.Balance(x, w, alpha, 1-alpha, leastShare) {
		s[j] = float32(v)
	}
	return s
}
