//go:build !amd64 || purego

package kernels

func roundBF16(*uint16, *float32, int) { panic("kernels: no bfloat16 instructions") }

func prefetch(*byte, int) {}

func arithmeticPeaks() []arithmeticPeak { return nil }

func readMemory(b []byte) { readGo(b) }

func (f *Format) unpackerF32() unpacker { return nil }

func (f *Format) rowProducts() (p rowProducts, ok bool) { return p, false }

func (f *Format) rowProductsBF16(Precision) (p rowProductsBF16, ok bool) { return p, false }

func (f *Format) unpackerBF16() unpacker { return nil }

func expSum(dst, src []float32, shift float32) float32 { return expSumGo(dst, src, shift) }

func siluMul(dst, gate, up []float32) { siluMulGo(dst, gate, up) }

func maxOf(x []float32) float32 { return maxOfGo(x) }

func rope([]float32, int, []float32, []float32, RoPEStyle) int { return 0 }

func scaleMul(dst, x, w []float32, scale float32) { scaleMulGo(dst, x, w, scale) }

func scale(x []float32, s float32) { scaleGo(x, s) }

// Measure measures the first n candidates on a group of weights, an even number: see MeasureLevels.
func (c *Candidates) Measure(n int, x, wt []float32, lo, hi int32) { c.measureGo(n, x, wt, lo, hi) }

// MeasureEach measures each of the first n candidates on a group of its own, lane i of x and wt, whose length is even
// and at most MaxLane.
func (c *Candidates) MeasureEach(n int, x, wt [][16]float32, lo, hi int32) {
	c.measureEachGo(n, x, wt, lo, hi)
}

func encodeF16Whole([]byte, []float32) int { return 0 }

func encodeBF16Whole([]byte, []float32) int { return 0 }
