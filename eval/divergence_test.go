package eval

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestLikeliest compares with sorting, whatever the parts that the logits come in.
func TestLikeliest(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 3))
	for range 200 {
		logits := make([]float32, 1+rng.IntN(40))
		order := make([]int, len(logits))
		for i := range logits {
			logits[i], order[i] = float32(rng.IntN(12))-6, i
		}
		slices.SortStableFunc(order, func(a, b int) int { return int(logits[b] - logits[a]) })
		var l likeliest
		for first := 0; first < len(logits); {
			n := 1 + rng.IntN(len(logits)-first)
			l.add(logits[first:first+n], first)
			first += n
		}
		if want := order[:min(topTokens, len(order))]; !slices.Equal(l.token[:l.n], want) {
			t.Fatalf("%v: %v, want %v", logits, l.token[:l.n], want)
		}
	}
	a, b := likeliest{n: 5, token: [5]int{1, 2, 3, 4, 5}}, likeliest{n: 5, token: [5]int{5, 6, 1, 7, 8}}
	if got := a.common(&b); got != 0.4 {
		t.Errorf("%v of the tokens in common, want 0.4", got)
	}
}

// TestEstimate: of a mean, the jackknife's error is that of the groups' means.
func TestEstimate(t *testing.T) {
	const chunks, per = 10, 7
	rng := rand.New(rand.NewPCG(15, 4))
	x := make([]float64, chunks*per)
	means := make([]float64, chunks)
	for c := range means {
		shift := rng.NormFloat64()
		for i := range per {
			x[c*per+i] = shift + rng.NormFloat64()
			means[c] += x[c*per+i] / per
		}
	}
	wantValue, want := meanAndError(means)
	value, stderr := estimate(x, chunks, meanOf)
	if math.Abs(value-wantValue) > 1e-12 || math.Abs(stderr-want) > 1e-12 {
		t.Errorf("%v ± %v, want %v ± %v", value, stderr, wantValue, want)
	}
	before := slices.Clone(x)
	if p, e := estimate(x, chunks, percentile999); !(p > 0 && e > 0) || !slices.Equal(x, before) {
		t.Errorf("99.9th percentile %v ± %v, or it has sorted its input", p, e)
	}
}

// TestFloat16Noise compares with rounding.
func TestFloat16Noise(t *testing.T) {
	// Units of float16: 2⁻⁶ from 16 to 32, 2⁻⁹ from 2 to 4, 2⁻²⁴ at the least.
	for best, unit := range map[float32]float64{16: 1. / 64, 31.9: 1. / 64, -3: 1. / 512, 1e-9: 0x1p-24} {
		if got, want := float16Noise(best), unit*unit/24; got != want {
			t.Errorf("best %v: %v, want %v", best, got, want)
		}
	}
}
