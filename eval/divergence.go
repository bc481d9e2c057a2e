package eval

import (
	"math"
	"slices"
)

// topTokens is how many of the likeliest tokens of a prediction are compared.
const topTokens = 5

// likeliest are a prediction's likeliest tokens, the first of equals first.
type likeliest struct {
	n     int
	token [topTokens]int
	logit [topTokens]float32
}

// add takes the logits from token first on; tokens come in ascending order.
func (l *likeliest) add(logits []float32, first int) {
	for i, v := range logits {
		if l.n == topTokens && !(v > l.logit[topTokens-1]) {
			continue
		}
		at := min(l.n, topTokens-1)
		for ; at > 0 && v > l.logit[at-1]; at-- {
			l.logit[at], l.token[at] = l.logit[at-1], l.token[at-1]
		}
		l.logit[at], l.token[at] = v, first+i
		l.n = min(l.n+1, topTokens)
	}
}

// common is the share of l's tokens that other has too.
func (l *likeliest) common(other *likeliest) float64 {
	same := 0
	for _, t := range l.token[:l.n] {
		if slices.Contains(other.token[:other.n], t) {
			same++
		}
	}
	return float64(same) / float64(max(l.n, 1))
}

// float16Noise is the KL divergence to be expected of rounding logits to float16 where the largest is best: half the variance of
// an even error of one unit in the last place, in the tokens that count, whose logits are about as large.
func float16Noise(best float32) float64 {
	_, exponent := math.Frexp(float64(best))
	unit := math.Ldexp(1, max(exponent, -13)-11)
	return unit * unit / 24
}

// maxGroups is how many groups of chunks standard errors are made from.
const maxGroups = 50

// estimate returns a statistic of x, the scored tokens of some chunks after each other, and its standard error by the
// jackknife: from what it is without each of up to maxGroups groups of neighbouring chunks. Tokens of a chunk tell of each
// other; those of different chunks hardly do. With one chunk the error is 0.
func estimate(x []float64, chunks int, statistic func(x []float64) float64) (value, stderr float64) {
	value = statistic(slices.Clone(x))
	groups := min(chunks, maxGroups)
	if groups < 2 {
		return value, 0
	}
	per := len(x) / chunks
	left := make([]float64, groups)
	rest := make([]float64, 0, len(x))
	for g := range left {
		lo, hi := g*chunks/groups*per, (g+1)*chunks/groups*per
		rest = append(append(rest[:0], x[:lo]...), x[hi:]...)
		left[g] = statistic(rest)
	}
	var mean, sum float64
	for _, v := range left {
		mean += v / float64(groups)
	}
	for _, v := range left {
		sum += (v - mean) * (v - mean)
	}
	return value, math.Sqrt(sum * float64(groups-1) / float64(groups))
}

func meanOf(x []float64) float64 {
	m, _ := meanAndError(x)
	return m
}

func rootMeanSquare(x []float64) float64 {
	var sum float64
	for _, v := range x {
		sum += v * v
	}
	return math.Sqrt(sum / float64(len(x)))
}

// percentile999 sorts x.
func percentile999(x []float64) float64 {
	slices.Sort(x)
	return quantile(x, 0.999)
}
