package encode

import (
	"fmt"
	"math"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// Q4_0 stores blocks of 32 weights as ggml's Q4_0, 18 bytes each: block i is scale[i], a float16 value, and the whole
// numbers in −8..7 nearest to its weights over scale[i], ties to even, plus 8. With a scale of 0 they are 0.
func Q4_0(dst []byte, x, scale []float32) {
	checkBlocks(dst, x, scale, 18)
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(scale) > 0 {
		roundQ4_0(n, dst, x, scale)
		return
	}
	for i, d := range scale {
		var codes [32]int8
		roundBlock(&codes, x[32*i:], d, -8, 7)
		b := dst[18*i:]
		putBits(b, tensor.ToF16(d))
		for j := range 16 {
			b[2+j] = byte(codes[j]+8) | byte(codes[j+16]+8)<<4
		}
	}
}

// Q8_0 stores blocks of 32 weights as ggml's Q8_0, 34 bytes each: as Q4_0, with −128..127 and nothing added.
func Q8_0(dst []byte, x, scale []float32) {
	checkBlocks(dst, x, scale, 34)
	if n := kernels.CurrentTier().Lanes(); n > 0 && len(scale) > 0 {
		roundQ8_0(n, dst, x, scale)
		return
	}
	for i, d := range scale {
		var codes [32]int8
		roundBlock(&codes, x[32*i:], d, -128, 127)
		b := dst[34*i:]
		putBits(b, tensor.ToF16(d))
		for j, q := range codes {
			b[2+j] = byte(q)
		}
	}
}

func checkBlocks(dst []byte, x, scale []float32, blockBytes int) {
	if len(x) != 32*len(scale) || len(dst) != blockBytes*len(scale) {
		panic(fmt.Sprintf("encode: %d bytes for %d weights with %d scales", len(dst), len(x), len(scale)))
	}
}

// roundBlock is search.NearestLevels without a minimum, in pure Go.
func roundBlock(codes *[32]int8, x []float32, scale float32, lo, hi int8) {
	if scale == 0 {
		return
	}
	for j := range codes {
		v := x[j] / scale
		if !(v > float32(lo)) { // NaN too
			v = float32(lo)
		}
		codes[j] = int8(math.RoundToEven(float64(min(v, float32(hi)))))
	}
}
