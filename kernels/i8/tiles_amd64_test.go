//go:build !purego

package i8

import (
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/tensor"
	"golang.org/x/sys/cpu"
)

// TestTiles wants the plain product's results of AMX, bit for bit, at all remainders of tokens, outputs and columns.
func TestTiles(t *testing.T) {
	if kernels.BestTier() < kernels.AMX || !cpu.X86.HasAMXInt8 {
		t.Skip("no AMX-INT8 here")
	}
	defer kernels.SetTier(kernels.SetTier(kernels.AMX))
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range 72 {
		tokens, out, cols := 32+(7*i)%33, 32+(13*i)%70, 1+i
		if i == 40 { // more rows than stay in the cache, more strips than are packed at once
			tokens, out = 3*tileTokens-5, (tileStrips+1)*tileSide+3
		}
		group := cols
		if i%3 == 0 {
			cols = 32 * (1 + i/3%9)
			group = 32
		}
		x, w := randomMatrix(rng, tokens, cols, cols), randomMatrix(rng, out, cols, group)
		if !inTiles(x, w) {
			t.Fatalf("%d×%d·%d in groups of %d: not in tiles", tokens, cols, out, group)
		}
		whole, dst := kerneltest.Guarded(tokens, out)
		MatMul(dst, x, w)
		kerneltest.CheckGuards(t, whole, tokens, out)
		want := tensor.New(tokens, out)
		productGo(want, x, w, 0, tokens, 0, out)
		for y := range tokens {
			for o, v := range want.Row(y) {
				if got := dst.Row(y)[o]; got != v {
					t.Fatalf("%d×%d·%d in groups of %d: [%d %d] is %v, want %v", tokens, cols, out, group, y, o, got, v)
				}
			}
		}
	}
}
