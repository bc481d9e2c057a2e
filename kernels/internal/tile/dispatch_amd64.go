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
		Kernels:   []MicroKernel{kernel(3, gemmF32AVX2x3), kernel(6, gemmF32AVX2x6)},
		Transpose: pack.TransposeAVX2, CopyStrip: pack.CopyStripAVX2,
	}
	tilesAVX512 = Tiling{
		Lanes: 16, KC: 512, NC: 256,
		Kernels:   []MicroKernel{kernel(4, gemmF32AVX512x4), kernel(8, gemmF32AVX512x8), kernel(12, gemmF32AVX512x12)},
		Transpose: pack.TransposeAVX512, CopyStrip: pack.CopyStripAVX512,
	}
	tilesBF16 = Tiling{
		Lanes: 16, KC: 512, NC: 256, Pairs: true,
		Kernels:   []MicroKernel{kernel(4, gemmBF16x4), kernel(8, gemmBF16x8), kernel(12, gemmBF16x12)},
		Transpose: pack.TransposeAVX512, CopyStrip: pack.PairStrip, CopyWords: pack.CopyStripAVX512,
	}
	// A panel of 32 rows and 512 steps, 64 KiB, comes from L2 like B's strips: what a call does beside its products, loading the
	// tiles' configuration and adding the sums to C, is then 15% of it. With 256 steps, which fit L1, a product takes 1.5 × the time.
	tilesAMX = Tiling{
		Lanes: 16, KC: 512, NC: 256, Pairs: true, RowsOnly: true,
		Kernels:   []MicroKernel{amxKernel(16, gemmAMXx16), amxKernel(32, gemmAMXx32)},
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
	case t >= kernels.AVX2:
		return &tilesAVX2
	}
	return nil
}

// kernel is a micro-kernel that takes many strips.
func kernel(rows int, many manyTiles) MicroKernel {
	return MicroKernel{Rows: rows, Many: many, Run: func(k int, a *uint32, rowA, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
		next *uint32, stepNext int) {
		many(1, k, a, rowA, stepA, b, c, rowC, alpha, add, next, stepNext)
	}}
}

// amxKernel is a micro-kernel of tiles, which are configured once for all that lie side by side.
func amxKernel(rows int, many func(strips, k int, a *uint32, rowA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
	next *uint32, stepNext int)) MicroKernel {
	return kernel(rows, func(strips, k int, a *uint32, rowA, _ int, b *uint32, c *float32, rowC int, alpha float32, add bool, next *uint32,
		stepNext int) {
		many(strips, k, a, rowA, b, c, rowC, alpha, add, next, stepNext)
	})
}
