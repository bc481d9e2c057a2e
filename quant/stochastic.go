package quant

import (
	"math"
	"math/rand/v2"
)

// Rounding is how a value between two codes is rounded. The zero value takes the nearest code, ties away from 0.
type Rounding struct {
	// Stochastic rounds up with a probability equal to the distance from the code below, so that the expected value is
	// the value itself, at twice the squared error.
	Stochastic bool
	// Seed of the PCG generator that decides. Each row draws from a stream of its own: a row's codes do not depend on
	// what else is quantized.
	Seed uint64
}

// rounder returns the function that rounds a row's values.
func (r Rounding) rounder(row uint64) func(float64) float64 {
	if !r.Stochastic {
		return math.Round
	}
	rng := rand.New(rand.NewPCG(r.Seed, row))
	return func(v float64) float64 { return math.Floor(v + rng.Float64()) }
}
