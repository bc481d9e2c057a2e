//go:build (!amd64 && !arm64) || purego

package vector

// Dot returns Σ a[i]·b[i] over len(a) elements.
func Dot(a, b []float32) float32 { return PlainDot(a, b[:len(a)]) }

// Axpy sets dst[i] += alpha·x[i] over len(x) elements.
func Axpy(dst []float32, alpha float32, x []float32) { PlainAxpy(dst[:len(x)], alpha, x) }
