//go:build !amd64 || purego

package elementwise

// ExpSum sets dst[i] = exp(src[i]−shift) and returns the sum.
func ExpSum(dst, src []float32, shift float32) float32 { return expSumGo(dst, src, shift) }

// Decays sets dst[i] = exp(s−sums[i]), the difference rounded to float32.
func Decays(dst []float32, sums []float64, s float64) { decaysGo(dst, sums, s) }

// Max returns the largest element, −Inf for none. NaN may be overlooked.
func Max(x []float32) float32 { return maxGo(x) }

// Scale sets x[i] = x[i]·s.
func Scale(x []float32, s float32) { scaleGo(x, s) }

func gated(f gate, dst, gate, up []float32) { gatedGo(f, dst, gate, up) }

func rope([]float32, int, []float32, []float32, RoPEStyle) int { return 0 }

func siluBack(dGate, dUp, dz, gate, up []float32) { siluBackGo(dGate, dUp, dz, gate, up) }

func scaleMul(dst, x, w []float32, scale float32) { scaleMulGo(dst, x, w, scale) }

func signedRoots(dst, x []float32, bits []uint64) { signedRootsGo(dst, x, bits) }
