//go:build !purego

package pack

// TransposeNEON sets dst[j][i] = src[i][j] for i < 4 and j < 4·n; rows are rowDst and rowSrc bytes apart.
//
//go:noescape
func TransposeNEON(dst *uint32, rowDst int, src *uint32, rowSrc int, n int)

// CopyStripNEON copies the first two vectors of n rows, rowSrc bytes apart in src, contiguous in dst.
//
//go:noescape
func CopyStripNEON(dst *uint32, src *uint32, rowSrc int, n int)
