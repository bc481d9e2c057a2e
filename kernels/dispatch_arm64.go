//go:build !purego

package kernels

// BestTier is the highest tier that this machine has: every arm64 processor has NEON.
func BestTier() Tier { return NEON }

// tilesNEON has float32 products only. A tile of 8×8 takes 16 of the 32 registers for its sums.
var tilesNEON = tiling{
	lanes: 4, kc: 512, nc: 256,
	kernels:   []microKernel{{4, gemmNEONx4}, {8, gemmNEONx8}},
	transpose: transposeNEON, copyStrip: copyStripNEON,
}

func tiles(Precision) *tiling {
	if CurrentTier() == NEON {
		return &tilesNEON
	}
	return nil
}

// Dot returns Σ a[i]·b[i] over len(a) elements.
func Dot(a, b []float32) float32 {
	b = b[:len(a)]
	n := len(a) &^ 15
	if n == 0 || CurrentTier() != NEON {
		return dotGo(a, b)
	}
	return dotNEON(&a[0], &b[0], n) + dotGo(a[n:], b[n:])
}

// Axpy sets dst[i] += alpha·x[i] over len(x) elements.
func Axpy(dst []float32, alpha float32, x []float32) {
	dst = dst[:len(x)]
	n := len(x) &^ 15
	if n == 0 || CurrentTier() != NEON {
		axpyGo(dst, alpha, x)
		return
	}
	axpyNEON(&dst[0], &x[0], n, alpha)
	axpyGo(dst[n:], alpha, x[n:])
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

// transposeNEON sets dst[j][i] = src[i][j] for i < 4 and j < 4·n; rows are rowDst and rowSrc bytes apart.
//
//go:noescape
func transposeNEON(dst *uint32, rowDst int, src *uint32, rowSrc int, n int)

// copyStripNEON copies the first two vectors of n rows, rowSrc bytes apart in src, contiguous in dst.
//
//go:noescape
func copyStripNEON(dst *uint32, src *uint32, rowSrc int, n int)

// dotNEON returns Σ a[i]·b[i]; n is a multiple of 16.
//
//go:noescape
func dotNEON(a, b *float32, n int) float32

// axpyNEON sets dst[i] += alpha·x[i]; n is a multiple of 16.
//
//go:noescape
func axpyNEON(dst, x *float32, n int, alpha float32)
