//go:build !purego

package tile

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
)

// tilesNEON has float32 products only. A tile of 8×8 takes 16 of the 32 registers for its sums.
var tilesNEON = Tiling{
	Lanes: 4, KC: 512, NC: 256,
	Kernels:   []MicroKernel{{Rows: 4, Run: gemmNEONx4}, {Rows: 8, Run: gemmNEONx8}},
	Transpose: pack.TransposeNEON, CopyStrip: pack.CopyStripNEON,
}

// For returns the micro-kernels; nil in pure Go.
func For(kernels.Precision) *Tiling {
	if kernels.CurrentTier() >= kernels.NEON {
		return &tilesNEON
	}
	return nil
}

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
