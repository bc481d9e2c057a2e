package encode

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/llmq/llmq/kernels/internal/kerneltest"
	"github.com/llmq/llmq/kernels/search"
	"github.com/llmq/llmq/tensor"
)

// Every tier stores the same blocks, whose codes are those of NearestLevels.
func TestRoundBlocks(t *testing.T) {
	kerneltest.EachTier(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(1, 2))
		for blocks := range 20 {
			x, scale := make([]float32, 32*blocks), make([]float32, blocks)
			for i := range scale {
				scale[i] = tensor.RoundF16(float32(rng.NormFloat64()))
				switch i {
				case 3:
					scale[i] = 0
				case 4:
					scale[i] = -1.0 / (1 << 24) // the smallest float16
				case 5:
					scale[i] = MaxF16
				}
				for j := range 32 {
					x[32*i+j] = float32(math.Round(rng.NormFloat64()*40)/8) * scale[i] // with ties
					switch {
					case i == 3:
						x[32*i+j] = float32(j)
					case i == 6 && j < 4:
						x[32*i+j] = [...]float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 1e38}[j]
					}
				}
			}
			for _, c := range []struct {
				name       string
				round      func(dst []byte, x, scale []float32)
				blockBytes int
				lo, hi     int8
				code       func(block []byte, j int) int8
			}{
				{"Q4_0", Q4_0, 18, -8, 7, func(b []byte, j int) int8 { return int8(b[2+j%16]>>(j/16*4)&15) - 8 }},
				{"Q8_0", Q8_0, 34, -128, 127, func(b []byte, j int) int8 { return int8(b[2+j]) }},
			} {
				guarded := bytes.Repeat([]byte{99}, blocks*c.blockBytes+2)
				dst := guarded[1 : 1+blocks*c.blockBytes]
				c.round(dst, x, scale)
				if guarded[0] != 99 || guarded[len(guarded)-1] != 99 {
					t.Fatalf("%s: %d blocks: written outside", c.name, blocks)
				}
				for i, d := range scale {
					b := dst[i*c.blockBytes:]
					if got := tensor.F16(uint16(b[0]) | uint16(b[1])<<8); got != d {
						t.Fatalf("%s: scale %v is stored as %v", c.name, d, got)
					}
					var want [32]int8
					if d != 0 {
						search.NearestLevels(want[:], x[32*i:32*i+32], d, 0, c.lo, c.hi)
					}
					for j, q := range want {
						if got := c.code(b, j); got != q {
							t.Fatalf("%s: block %d of %d: %v over %v is stored as %d, want %d", c.name, i, blocks, x[32*i+j], d, got, q)
						}
					}
				}
			}
		}
	})
}
