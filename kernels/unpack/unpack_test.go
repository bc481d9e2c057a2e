package unpack_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels/internal/blocktest"
	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/kernels/unpack"
)

// F32 gives the plain decoder's values bit for bit, but for the sign and payload of NaN, and writes no further.
func TestUnpack(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for _, typ := range blocktest.Types {
			lengths := []int{0, 1, 2, 3, 7, 20}
			if typ.BlockLen == 1 {
				lengths = []int{0, 1, 31, 32, 33, 63, 64, 65, 500}
			}
			for _, blocks := range lengths {
				src := make([]byte, 1+blocks*typ.BlockBytes)[1:] // unaligned
				for i := range src {
					src[i] = byte(rng.Uint32())
				}
				n := blocks * typ.BlockLen
				want, got := make([]float32, n), make([]float32, n+3)
				got[0], got[n+1], got[n+2] = 42, 42, 42
				typ.Unpack(want, src)
				unpack.F32(&typ.Format, got[1:n+1], src)
				if got[0] != 42 || got[n+1] != 42 || got[n+2] != 42 {
					t.Fatalf("%v, %d blocks: wrote outside dst", typ, blocks)
				}
				for i, w := range want {
					g := got[1+i]
					if math.Float32bits(g) != math.Float32bits(w) && !(g != g && w != w) {
						t.Fatalf("%v, %d blocks: weight %d is %v, want %v", typ, blocks, i, g, w)
					}
				}
			}
		}
	})
}

// BenchmarkUnpack counts weights.
func BenchmarkUnpack(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, typ := range blocktest.Types {
		b.Run(typ.Name, func(b *testing.B) {
			w := blocktest.Weights(rng, typ, 1, 4096)
			dst := make([]float32, 4096)
			kerneltest.Rate(b, 4096, func() { unpack.F32(&typ.Format, dst, w.Data) })
		})
	}
}
