package encode

import "github.com/llmq/llmq/tensor"

// The largest finite values of the two half-precision formats.
const (
	MaxF16  = 65504
	MaxBF16 = 0xff << 120 // 0x7f7f: (2 − 2⁻⁷)·2¹²⁷
)

// F16 stores src as little-endian binary16, rounded to the nearest, ties to even; what is too large becomes
// ±MaxF16. NaN stays NaN.
func F16(dst []byte, src []float32) {
	n := wholeF16(dst, src)
	for i, v := range src[n:] {
		putBits(dst[2*(n+i):], tensor.ToF16(min(max(v, -MaxF16), MaxF16)))
	}
}

// BF16 stores src as little-endian bfloat16, rounded to the nearest, ties to even; what is too large becomes
// ±MaxBF16. NaN stays NaN.
func BF16(dst []byte, src []float32) {
	n := wholeBF16(dst, src)
	for i, v := range src[n:] {
		putBits(dst[2*(n+i):], tensor.ToBF16(min(max(v, -MaxBF16), MaxBF16)))
	}
}

func putBits(dst []byte, bits uint16) { dst[0], dst[1] = byte(bits), byte(bits>>8) }
