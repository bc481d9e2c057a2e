// Package pack brings matrices into the layouts of the micro-kernels: transposes, strips, and rounding to bfloat16 pairs. A
// word is 32 bits: a float32, or two bfloat16 values that are neighbours in the summed dimension.
package pack

import (
	"unsafe"

	"github.com/llmq/llmq/tensor"
)

// Pitch is the distance in words of rows of n words that are read side by side. A power of two would put all of them into
// the same few lines of the L1 cache.
func Pitch(n int) int {
	n = (n+15)&^15 + 16
	if n%128 == 0 {
		n += 16
	}
	return n
}

// BF16 sets dst to src rounded to bfloat16, two to a word; the last half is empty if len(src) is odd.
func BF16(dst []uint32, src []float32) {
	n := len(src) &^ 31
	if n > 0 {
		RoundBF16((*uint16)(unsafe.Pointer(&dst[0])), &src[0], n)
	}
	for i := n; i < len(src); i += 2 {
		w := uint32(tensor.ToBF16(src[i]))
		if i+1 < len(src) {
			w |= uint32(tensor.ToBF16(src[i+1])) << 16
		}
		dst[i/2] = w
	}
}
