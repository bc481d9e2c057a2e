package search

import (
	"math"

	"github.com/llmq/llmq/kernels"
)

// Moves are 16 groups whose scales and minimums are multiples of steps. When a group's scale rises by x and its minimum by y, its error
// changes by −2(Px−Qy) + Ax² − 2Bxy + Cy², C being the same for all of them.
type Moves struct {
	P, Q, A, B        kernels.Lane
	Step, StepMinimum kernels.Lane // a StepMinimum of 0: there is no minimum
	Scale, Minimum    kernels.Lane // the multiples
}

// Move moves the multiples to the neighbours of the best with which errors are least, Scale's being in lo..hi and Minimum's in 0..most, and
// returns a bit for each group that moved. Groups with a Step of 0 stay.
func (s *Moves) Move(c float64, lo, hi, most int) (moved uint16) {
	if kernels.CurrentTier().Lanes() > 0 {
		return s.move(c, float64(lo), float64(hi), float64(most))
	}
	for i := range kernels.Lanes {
		if s.moveOne(i, c, float64(lo), float64(hi), float64(most)) {
			moved |= 1 << i
		}
	}
	return moved
}

// moveOne is Move for one group. The conversions forbid fused multiply-adds, so that every machine finds the same multiples.
func (s *Moves) moveOne(i int, c, lo, hi, most float64) bool {
	p, q, a, b := float64(s.P[i]), -float64(s.Q[i]), float64(s.A[i]), -float64(s.B[i])
	step, stepMinimum := float64(s.Step[i]), float64(s.StepMinimum[i])
	scale, minimum := float64(s.Scale[i]), float64(s.Minimum[i])
	wanted := p / a
	if det := float64(a*c) - float64(b*b); stepMinimum != 0 && det > 0 {
		wanted = (float64(p*c) - float64(q*b)) / det
	}
	if step == 0 || wanted != wanted {
		return false
	}
	below := math.Floor(scale + wanted/step)
	best, bestScale, bestMinimum := -1e-9*math.Abs(a), scale, minimum
	for _, n := range [...]float64{below, below + 1, scale} {
		n = min(max(n, lo), hi)
		x := (n - scale) * step
		near := math.Floor(minimum + (q-float64(b*x))/c/stepMinimum)
		for _, m := range [...]float64{near, near + 1} {
			if m = min(max(m, 0), most); stepMinimum == 0 {
				m = minimum
			}
			y := (m - minimum) * stepMinimum
			v := -2 * (float64(p*x) + float64(q*y))
			v += float64(a * x * x)
			v += float64(2 * b * x * y)
			v += float64(c * y * y)
			if v < best {
				best, bestScale, bestMinimum = v, n, m
			}
		}
	}
	if bestScale == scale && bestMinimum == minimum {
		return false
	}
	s.Scale[i], s.Minimum[i] = float32(bestScale), float32(bestMinimum)
	return true
}
