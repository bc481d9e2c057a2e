package quant_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// TestRoundLanes compares the words that are found with all words under all signs that are allowed, in every tier.
func TestRoundLanes(t *testing.T) {
	defer kernels.SetTier(kernels.CurrentTier())
	rng := rand.New(rand.NewPCG(15, 1))
	for _, typ := range []*ggml.Type{ggml.IQ1_S, ggml.IQ1_M, ggml.IQ2_XXS, ggml.IQ2_XS, ggml.IQ2_S, ggml.IQ3_XXS, ggml.IQ3_S} {
		g := typ.Grid.(*quant.Lattice)
		top := float64(g.Codebook.Levels[len(g.Codebook.Levels)-1])
		level, x, wt := make([]kernels.Lane, g.Group), make([]kernels.Lane, g.Group), make([]kernels.Lane, g.Group)
		var scale, inverse kernels.Lane
		for i := range scale {
			scale[i] = float32(math.Exp(rng.NormFloat64()))
			inverse[i] = 1 / scale[i]
			for j := range x {
				x[j][i], wt[j][i] = scale[i]*float32(0.5*top*rng.NormFloat64()), float32(rng.Float64())
			}
		}
		want := make([]kernels.Lane, g.Group)
		var r quant.Rounder
		for _, tier := range kernels.Tiers() {
			kernels.SetTier(tier)
			g.RoundLanes(&r, level, x, wt, &inverse)
			if tier == kernels.PureGo {
				copy(want, level)
			}
			if !slices.Equal(level, want) {
				t.Errorf("%s: %v does not find what Go does", typ, tier)
			}
		}
		for i := range scale {
			var got float64
			ofLane, weights := make([]float32, g.Group), make([]float32, g.Group)
			for j := range level {
				d := float64(x[j][i]) - float64(scale[i])*float64(level[j][i])
				got += float64(wt[j][i]) * d * d
				ofLane[j], weights[j] = x[j][i], wt[j][i]
			}
			if want := leastError(g, ofLane, weights, scale[i]); math.Abs(got-want) > 1e-5*want {
				t.Fatalf("%s: error %g, the least is %g", typ, got, want)
			}
		}
	}
}

// leastError tries every word. Of signs, the columns' own are best where all are allowed, and with one turned where not.
func leastError(g *quant.Lattice, x, wt []float32, scale float32) float64 {
	c := g.Codebook
	n := c.Width
	codes := make([]int8, n)
	errorOf := func(at int, level func(j int) float64) (sum float64) {
		for j := range n {
			d := float64(x[at+j])/float64(scale) - level(j)
			sum += float64(wt[at+j]) * d * d
		}
		return sum * float64(scale) * float64(scale)
	}
	// least returns the least error of the word at a column with the signs of x but that of turned, and shifted.
	least := func(at, turned int, shift float64) float64 {
		e := math.Inf(1)
		for word := range c.Len() {
			c.Put(codes, word, 0)
			e = min(e, errorOf(at, func(j int) float64 {
				l := float64(codes[j])
				if g.Signs < quant.ShiftedWords && (x[at+j] < 0) != (j == turned) {
					l = -l
				}
				return l + shift
			}))
		}
		return e
	}
	sum, shifted := 0.0, [2]float64{}
	for at := 0; at < len(x); at += 8 {
		switch g.Signs {
		case quant.ShiftedWords:
			sum += min(least(at, -1, 1), least(at, -1, -1))
			continue
		case quant.ShiftedGroups:
			shifted[0] += least(at, -1, 1)
			shifted[1] += least(at, -1, -1)
			continue
		}
		odd := false
		for _, v := range x[at : at+8] {
			odd = odd != (v < 0)
		}
		var plain, extra float64
		extra = math.Inf(1)
		for i := at; i < at+8; i += n {
			e := least(i, -1, 0)
			plain += e
			for j := range n {
				extra = min(extra, least(i, j, 0)-e)
			}
		}
		if odd && g.Signs == quant.EvenSigns {
			plain += extra
		}
		sum += plain
	}
	if g.Signs == quant.ShiftedGroups {
		return min(shifted[0], shifted[1])
	}
	return sum
}
