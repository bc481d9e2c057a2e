// Package awq protects the weights that meet large inputs (Lin et al., AWQ, arXiv:2306.00978): it multiplies their columns
// before rounding and divides the inputs, so that less of what matters is lost, and clips weights that would cost the
// others of their block their resolution.
package awq

import (
	"context"
	"math"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// gridPoints: α is a multiple of 1/20 (section 3.2).
const gridPoints = 20

// coarse: the multiples of 4/20 are tried first, then those on both sides of the best so far, 2/20 and 1/20 away. The
// error is smooth in α but for the noise of rounding, so little is lost against trying all.
const coarse = 4

// Scaling is the transform that chooses scales s = x^α, x being the mean magnitude of each channel of the input, or
// s = x^α/w^(1−α) with w that of the weights' columns. The paper has the first alone; the second, of AutoAWQ
// (github.com/casper-hansen/AutoAWQ, its duo scaling), sees what the first cannot: channels whose weights are small
// because their inputs are large.
type Scaling struct{}

// Transform returns the scales that give the smallest error of the block that follows, with the weights rounded to nearest
// on the grid that they are meant for; none if nothing is better than none.
func (Scaling) Transform(ctx context.Context, g *quant.Group) (*quant.Folding, error) {
	f := &quant.Folding{Transform: "awq", Group: g.Name}
	if f.Skipped = g.Foldable(); f.Skipped != "" {
		return f, nil
	}
	f.Into = g.Prev.Name
	x, w := g.In.MeanAbs(), columnMeans(g.Linears)
	g.Prev.Share(x)
	g.Prev.Share(w)
	f.Before = g.RoundingError(nil)
	f.After = f.Before
	var best candidate
	try := func(c candidate) error {
		if c.point < 1 || c.point > gridPoints {
			return nil
		}
		s := scales(x, w, c)
		if e := g.RoundingError(s); e < f.After {
			f.Scale, best, f.After = s, c, e
		}
		return ctx.Err()
	}
	for i := coarse; i <= gridPoints; i += coarse {
		for _, duo := range []bool{false, true} {
			if err := try(candidate{i, duo}); err != nil {
				return nil, err
			}
		}
	}
	for step := coarse / 2; step > 0; step /= 2 {
		center := best
		for _, i := range []int{center.point - step, center.point + step} {
			if err := try(candidate{i, center.duo}); err != nil {
				return nil, err
			}
		}
	}
	if f.Scale == nil {
		f.Skipped = "no scales lower its error"
		return f, nil
	}
	f.Alpha, f.Beta = best.exponents()
	return f, nil
}

// candidate is a place in the search.
type candidate struct {
	point int // α = point/gridPoints
	duo   bool
}

// exponents returns α and β of s = x^α/w^β.
func (c candidate) exponents() (alpha, beta float64) {
	alpha = float64(c.point) / gridPoints
	if c.duo {
		beta = float64(gridPoints-c.point) / gridPoints
	}
	return alpha, beta
}

// columnMeans returns the mean magnitude of each column over the rows of all linears.
func columnMeans(linears []*quant.Linear) []float32 {
	means := make([]float32, linears[0].W.Cols)
	rows := 0
	for _, l := range linears {
		rows += l.W.Rows
	}
	// Each column belongs to one goroutine, so its sum does not depend on their number.
	kernels.Parallel(len(means), 16, func(lo, hi int) {
		sum := make([]float64, hi-lo)
		for _, l := range linears {
			for r := range l.W.Rows {
				for j, v := range l.W.Row(r)[lo:hi] {
					sum[j] += math.Abs(float64(v))
				}
			}
		}
		for j, v := range sum {
			means[lo+j] = float32(v / float64(rows))
		}
	})
	return means
}

// leastShare bounds the magnitudes of channels that are never excited, or have no weights, as a share of the largest.
const leastShare = 1e-6

// scales returns x^α/w^β over √(max·min), which centres the scales around 1.
func scales(x, w []float32, c candidate) []float32 {
	alpha, beta := c.exponents()
	p := quant.Balance(x, w, alpha, beta, leastShare)
	centre := math.Sqrt(slices.Min(p) * slices.Max(p))
	s := make([]float32, len(x))
	for j, v := range p {
		s[j] = float32(v / centre)
	}
	return s
}
