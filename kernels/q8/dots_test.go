//go:build arm64 && !purego

package q8_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/blocktest"
	"github.com/llmq/llmq/kernels/q8"
	"github.com/llmq/llmq/tensor"
)

// TestDots wants the plain product's results, bit for bit, in every type and tier, through all remainders of tokens and outputs.
func TestDots(t *testing.T) {
	best := kernels.BestTier()
	if best < kernels.DotProd {
		t.Skip("no SDOT here")
	}
	defer kernels.SetTier(kernels.SetTier(kernels.PureGo))
	rng := rand.New(rand.NewPCG(9, 10))
	for i, typ := range levelTypes() {
		for j := range 4 {
			tokens, out, in := 1+(5*i+4*j)%13, 1+(11*i+29*j)%71, typ.BlockLen*(1+(i+j)%3)
			w, x := blocktest.Weights(rng, typ, out, in), q8Inputs(rng, tokens, in)
			if j == 3 && tokens > 1 {
				x.Row(tokens - 2)[in/2] = float32(math.Inf(1))
			}
			was := tensor.New(tokens, out)
			for k := range was.Data {
				was.Data[k] = float32(rng.NormFloat64())
			}
			products := func() (set, sum *tensor.Matrix, intact func() bool) {
				set, intactSet := guardedLike(was)
				sum, intactSum := guardedLike(was)
				q8.MatMul(x, kernels.Product{Dst: set, W: w})
				q8.MatMulAdd(sum, x, w)
				return set, sum, func() bool { return intactSet() && intactSum() }
			}
			kernels.SetTier(kernels.PureGo)
			wantSet, wantSum, _ := products()
			for tier := kernels.DotProd; tier <= best; tier++ {
				kernels.SetTier(tier)
				set, sum, intact := products()
				for r := range tokens {
					for c := range out {
						for k, pair := range [][2]*tensor.Matrix{{set, wantSet}, {sum, wantSum}} {
							got, want := pair[0].Row(r)[c], pair[1].Row(r)[c]
							if math.Float32bits(got) != math.Float32bits(want) && !(got != got && want != want) {
								t.Fatalf("%v, %v, %d tokens, %d×%d, product %d: [%d %d] is %v, want %v", tier, typ, tokens, out, in, k, r, c, got, want)
							}
						}
					}
				}
				if !intact() {
					t.Fatalf("%v, %v: %d tokens, %d×%d: wrote outside dst", tier, typ, tokens, out, in)
				}
			}
		}
	}
}
