//go:build !purego

package tile

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
)

// The micro-kernels of each tier. kc makes a block of A's rows fit the L1 cache and leaves room in L2 for nc columns of
// B: see kernels/README.md.
var (
	tilesAVX2 = Tiling{
		Lanes: 8, KC: 512, NC: 256,
		Kernels:   []MicroKernel{{3, gemmF32AVX2x3}, {6, gemmF32AVX2x6}},
		Transpose: pack.TransposeAVX2, CopyStrip: pack.CopyStripAVX2,
	}
	tilesAVX512 = Tiling{
		Lanes: 16, KC: 512, NC: 256,
		Kernels:   []MicroKernel{{4, gemmF32AVX512x4}, {8, gemmF32AVX512x8}, {12, gemmF32AVX512x12}},
		Transpose: pack.TransposeAVX512, CopyStrip: pack.CopyStripAVX512,
	}
	tilesBF16 = Tiling{
		Lanes: 16, KC: 512, NC: 256, Pairs: true,
		Kernels:   []MicroKernel{{4, gemmBF16x4}, {8, gemmBF16x8}, {12, gemmBF16x12}},
		Transpose: pack.TransposeAVX512, CopyStrip: pack.PairStrip, CopyWords: pack.CopyStripAVX512,
	}
	// A panel of 32 rows and 512 steps, 64 KiB, comes from L2 like B's strips: what a call does beside its products, loading the
	// tiles' configuration and adding the sums to C, is then 15% of it. With 256 steps, which fit L1, a product takes 1.5 × the time.
	tilesAMX = Tiling{
		Lanes: 16, KC: 512, NC: 256, Pairs: true, RowsOnly: true,
		Kernels:   []MicroKernel{{16, gemmAMXx16}, {32, gemmAMXx32}},
		Transpose: pack.TransposeAVX512, CopyStrip: pack.PairStrip, CopyWords: pack.CopyStripAVX512,
	}
)

// For returns the micro-kernels for products of float32 values, or of bfloat16 pairs where the tier has them and the
// precision allows it; nil in pure Go.
func For(p kernels.Precision) *Tiling {
	switch t := kernels.CurrentTier(); {
	case p.Rounds() && t >= kernels.AMX:
		return &tilesAMX
	case p.Rounds():
		return &tilesBF16
	case t >= kernels.AVX512:
		return &tilesAVX512
	case t == kernels.AVX2:
		return &tilesAVX2
	}
	return nil
}
