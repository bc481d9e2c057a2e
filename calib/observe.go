package calib

import (
	"fmt"
	"math"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Observer watches the values of one matrix that comes in batches, such as the input of a linear: tokens×features. The
// result does not depend on the number of threads, and but for the rounding of sums not on the batches.
type Observer struct {
	Tokens   int
	Min, Max float64 // of all values
	// AbsMax is the largest magnitude of each feature: SmoothQuant's statistic.
	AbsMax []float32
	// Histogram counts all magnitudes.
	Histogram *Histogram

	sumAbs []float64 // Σ|x| by feature
	powers []powers  // by feature
}

// powers are Σx, Σx², Σx³ and Σx⁴.
type powers [4]float64

// NewObserver returns an observer of so many features.
func NewObserver(features int) *Observer {
	return &Observer{
		Min: math.Inf(1), Max: math.Inf(-1), AbsMax: make([]float32, features), Histogram: NewHistogram(),
		sumAbs: make([]float64, features), powers: make([]powers, features),
	}
}

// featureGrain is how many features a goroutine takes at a time: some cache lines of each row.
const featureGrain = 64

// Observe adds a batch, tokens×features. A value that is not finite is an error, and the batch then not added whole.
func (o *Observer) Observe(x *tensor.Matrix) error {
	if x.Cols != len(o.AbsMax) {
		panic("calib: a batch with other features")
	}
	var mu sync.Mutex
	bad := -1 // the first feature with a value that is not finite
	// One goroutine sums a feature over all tokens, in their order.
	kernels.Parallel(x.Cols, featureGrain, func(from, to int) {
		least, most := math.Inf(1), math.Inf(-1)
		wrong := -1
		for t := range x.Rows {
			for j, v := range x.Row(t)[from:to] {
				f := float64(v)
				if v-v != 0 {
					if wrong < 0 || from+j < wrong {
						wrong = from + j
					}
					continue
				}
				least, most = min(least, f), max(most, f)
				abs := math.Abs(f)
				o.AbsMax[from+j] = max(o.AbsMax[from+j], float32(abs))
				o.sumAbs[from+j] += abs
				p := &o.powers[from+j]
				f2 := f * f
				p[0] += f
				p[1] += f2
				p[2] += f2 * f
				p[3] += f2 * f2
			}
		}
		mu.Lock()
		defer mu.Unlock()
		o.Min, o.Max = min(o.Min, least), max(o.Max, most)
		if wrong >= 0 && (bad < 0 || wrong < bad) {
			bad = wrong
		}
	})
	if bad >= 0 {
		return fmt.Errorf("feature %d is not a finite number", bad)
	}
	if x.Rows == 0 {
		return nil
	}
	o.Tokens += x.Rows
	o.count(x)
	return nil
}

// count adds x to the histogram.
func (o *Observer) count(x *tensor.Matrix) {
	h := o.Histogram
	h.reserve(max(-o.Min, o.Max))
	const rowGrain = 64
	var mu sync.Mutex
	scale := 1 / h.Width() // a power of two: exact
	kernels.Parallel(x.Rows, rowGrain, func(from, to int) {
		var neg, pos [HistogramBins]int64
		for t := from; t < to; t++ {
			for _, v := range x.Row(t) {
				if v < 0 {
					neg[int(-float64(v)*scale)]++
				} else {
					pos[int(float64(v)*scale)]++
				}
			}
		}
		mu.Lock()
		defer mu.Unlock()
		for i := range neg {
			h.Neg[i] += neg[i]
			h.Pos[i] += pos[i]
		}
	})
}

// MeanAbs returns the mean magnitude of each feature: AWQ's statistic.
func (o *Observer) MeanAbs() []float32 {
	mean := make([]float32, len(o.sumAbs))
	for i, s := range o.sumAbs {
		mean[i] = float32(s / float64(max(o.Tokens, 1)))
	}
	return mean
}

// Kurtosis is the fourth central moment of all values over the square of their variance: 3 for a Gaussian, more for
// heavier tails. 0 if all values are the same.
func (o *Observer) Kurtosis() float64 {
	var s powers
	for _, p := range o.powers {
		for i := range s {
			s[i] += p[i]
		}
	}
	n := float64(o.Tokens) * float64(len(o.powers))
	if n == 0 {
		return 0
	}
	for i := range s {
		s[i] /= n
	}
	mean := s[0]
	variance := s[1] - mean*mean
	if !(variance > 0) {
		return 0
	}
	return (s[3] - 4*mean*s[2] + 6*mean*mean*s[1] - 3*mean*mean*mean*mean) / (variance * variance)
}
