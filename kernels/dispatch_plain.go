//go:build (!amd64 && !arm64) || purego

package kernels

// BestTier is the highest tier that this machine has.
func BestTier() Tier { return PureGo }

func tiles(Precision) *tiling { return nil }

// Dot returns Σ a[i]·b[i] over len(a) elements.
func Dot(a, b []float32) float32 { return dotGo(a, b[:len(a)]) }

// Axpy sets dst[i] += alpha·x[i] over len(x) elements.
func Axpy(dst []float32, alpha float32, x []float32) { axpyGo(dst[:len(x)], alpha, x) }
