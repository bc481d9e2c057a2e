package quant_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/quant"
)

// TestRoundGroup compares the words that are found with all words under all signs that are allowed.
func TestRoundGroup(t *testing.T) {
	rng := rand.New(rand.NewPCG(15, 1))
	for _, typ := range []*ggml.Type{ggml.IQ1_S, ggml.IQ1_M, ggml.IQ2_XXS, ggml.IQ2_XS, ggml.IQ2_S, ggml.IQ3_XXS, ggml.IQ3_S} {
		g := typ.Grid.(*quant.Lattice)
		top := float64(g.Codebook.Levels[len(g.Codebook.Levels)-1])
		codes, x, wt := make([]int8, g.Group), make([]float32, g.Group), make([]float32, g.Group)
		for range 20 {
			scale := float32(math.Exp(rng.NormFloat64()))
			for j := range x {
				x[j], wt[j] = scale*float32(0.5*top*rng.NormFloat64()), float32(rng.Float64())
			}
			g.RoundGroup(codes, x, wt, scale)
			var got float64
			for j, q := range codes {
				d := float64(x[j]) - float64(scale)*float64(q)
				got += float64(wt[j]) * d * d
			}
			if want := leastError(g, x, wt, scale); math.Abs(got-want) > 1e-5*want {
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
