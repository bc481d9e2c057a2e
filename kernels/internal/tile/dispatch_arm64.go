//go:build !purego

package tile

import (
	"unsafe"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
)

// tilesNEON has float32 products only. A tile of 8×8 takes 16 of the 32 registers for its sums.
var tilesNEON = Tiling{
	Lanes: 4, KC: 512, NC: 256,
	Kernels:   []MicroKernel{{Rows: 4, Run: gemmNEONx4}, {Rows: 8, Run: gemmNEONx8}},
	Transpose: pack.TransposeNEON, CopyStrip: pack.CopyStripNEON,
}

// tilesBF16 has products of bfloat16 pairs. A tile of 12×8 takes 24 registers for its sums, four for B and four for A.
var tilesBF16 = Tiling{
	Lanes: 4, KC: bfmmlaSteps, NC: 256, Pairs: true, RowsOnly: true,
	Kernels:   []MicroKernel{bfmmlaKernel(4, gemmBFMMLAx4), bfmmlaKernel(8, gemmBFMMLAx8), bfmmlaKernel(12, gemmBFMMLAx12)},
	Transpose: pack.TransposeNEON, CopyStrip: pack.PairStripNEON, CopyWords: pack.CopyStripNEON, Weave: pack.WeaveNEON,
}

// bfmmlaSteps is how many steps a kernel of BFMMLA takes at most: it has room for their part of A.
const bfmmlaSteps = 512

// For returns the micro-kernels for products of float32 values, or of bfloat16 pairs where the tier has them and the precision allows
// it; nil in pure Go.
func For(p kernels.Precision) *Tiling {
	switch {
	case p.Rounds():
		return &tilesBF16
	case kernels.CurrentTier() >= kernels.NEON:
		return &tilesNEON
	}
	return nil
}

// bfmmlaKernel is a micro-kernel that weaves A once for all strips, of bfmmlaSteps steps at a time.
func bfmmlaKernel(rows int, many func(strips, k int, a *uint32, rowA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
	next *uint32, stepNext int)) MicroKernel {
	run := func(strips, k int, a *uint32, rowA, _ int, b *uint32, c *float32, rowC int, alpha float32, add bool, next *uint32, stepNext int) {
		if k <= bfmmlaSteps {
			many(strips, k, a, rowA, b, c, rowC, alpha, add, next, stepNext)
			return
		}
		const strip = 8
		for i := range strips {
			for s := 0; s < k; s += bfmmlaSteps {
				many(1, min(bfmmlaSteps, k-s), after(a, s), rowA, after(b, (i*k+s)*strip), after(c, i*strip), rowC, alpha, add || s > 0, next, 0)
			}
		}
	}
	return MicroKernel{Rows: rows, Many: run, Run: func(k int, a *uint32, rowA, stepA int, b *uint32, c *float32, rowC int, alpha float32,
		add bool, next *uint32, stepNext int) {
		run(1, k, a, rowA, stepA, b, c, rowC, alpha, add, next, stepNext)
	}}
}

// after returns the address n words after p.
func after[T uint32 | float32](p *T, n int) *T { return (*T)(unsafe.Add(unsafe.Pointer(p), 4*n)) }

// gemmNEONx8 sets C = alpha·A·B, or C += alpha·A·B if add; C is 8×8. Operands lie as in the other micro-kernels: A's
// element (i,p) is rowA·i+stepA·p bytes from a, B's step p is contiguous, C's row i rowC·i bytes from c; k > 0.
//
//go:noescape
func gemmNEONx8(k int, a *uint32, rowA int, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
	next *uint32, stepNext int)

// gemmNEONx4 is gemmNEONx8 for a C of 4×8.
//
//go:noescape
func gemmNEONx4(k int, a *uint32, rowA int, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
	next *uint32, stepNext int)
