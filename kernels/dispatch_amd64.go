//go:build !purego

package kernels

import "golang.org/x/sys/cpu"

// BestTier is the highest tier that this machine has.
func BestTier() Tier {
	x := &cpu.X86
	switch {
	case !(x.HasAVX2 && x.HasFMA):
		return PureGo
	case !(x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VL && x.HasAVX512DQ):
		return AVX2
	case !x.HasAVX512BF16:
		return AVX512
	}
	return AVX512BF16
}

// The micro-kernels of each tier. kc makes a block of A's rows fit the L1 cache and leaves room in L2 for nc columns of
// B: see the package's README.
var (
	tilesAVX2 = tiling{
		lanes: 8, kc: 512, nc: 256,
		kernels:   []microKernel{{3, gemmF32AVX2x3}, {6, gemmF32AVX2x6}},
		transpose: transposeAVX2, copyStrip: copyStripAVX2,
	}
	tilesAVX512 = tiling{
		lanes: 16, kc: 512, nc: 256,
		kernels:   []microKernel{{4, gemmF32AVX512x4}, {8, gemmF32AVX512x8}, {12, gemmF32AVX512x12}},
		transpose: transposeAVX512, copyStrip: copyStripAVX512,
	}
	tilesBF16 = tiling{
		lanes: 16, kc: 512, nc: 256, pairs: true,
		kernels:   []microKernel{{4, gemmBF16x4}, {8, gemmBF16x8}, {12, gemmBF16x12}},
		transpose: transposeAVX512, copyStrip: pairStrip, copyWords: copyStripAVX512,
	}
)

// tiles returns the micro-kernels for products of float32 values, or of bfloat16 pairs where the tier has them and the
// precision allows it; nil in pure Go.
func tiles(p Precision) *tiling {
	switch t := CurrentTier(); {
	case p.Rounds():
		return &tilesBF16
	case t >= AVX512:
		return &tilesAVX512
	case t == AVX2:
		return &tilesAVX2
	}
	return nil
}

// Dot returns Σ a[i]·b[i] over len(a) elements.
func Dot(a, b []float32) float32 {
	b = b[:len(a)]
	if len(a) == 0 {
		return 0
	}
	switch t := CurrentTier(); {
	case t >= AVX512:
		return dotAVX512(&a[0], &b[0], len(a))
	case t == AVX2:
		return dotAVX2(&a[0], &b[0], len(a))
	}
	return dotGo(a, b)
}

// Axpy sets dst[i] += alpha·x[i] over len(x) elements.
func Axpy(dst []float32, alpha float32, x []float32) {
	dst = dst[:len(x)]
	if len(x) == 0 {
		return
	}
	switch t := CurrentTier(); {
	case t >= AVX512:
		axpyAVX512(&dst[0], &x[0], len(x), alpha)
	case t == AVX2:
		axpyAVX2(&dst[0], &x[0], len(x), alpha)
	default:
		axpyGo(dst, alpha, x)
	}
}

func arithmeticPeaks() []arithmeticPeak {
	// A round is a hundred passes over the loop's independent instructions.
	loop := func(name, unit string, instructions, ops int, run func(n int)) arithmeticPeak {
		return arithmeticPeak{Peak{Name: name, Unit: unit}, float64(100 * instructions * ops),
			func(rounds int) { run(100 * rounds) }}
	}
	var p []arithmeticPeak
	best := BestTier()
	if best >= AVX512 {
		p = append(p, loop("f32 FMA, AVX-512", "GFLOP/s", 16, 2*16, peakF32AVX512))
	}
	if best >= AVX2 {
		p = append(p, loop("f32 FMA, AVX2", "GFLOP/s", 12, 2*8, peakF32AVX2))
	}
	if best >= AVX512BF16 {
		p = append(p, loop("bf16 dot product, AVX-512", "GFLOP/s", 16, 2*32, peakBF16))
	}
	if best >= AVX512 && cpu.X86.HasAVX512VNNI {
		p = append(p, loop("int8 dot product, AVX-512", "Gop/s", 16, 2*64, peakInt8))
	}
	return p
}

// readMemory loads every byte of b, whose length is a multiple of 256.
func readMemory(b []byte) {
	if BestTier() >= AVX2 {
		readAVX2(&b[0], len(b))
		return
	}
	readGo(b)
}
