package ggml

import (
	"encoding/binary"

	"github.com/llmq/llmq/tensor"
)

// What several types' layouts have in common.

// getF16 reads the float16 at the start of src.
func getF16(src []byte) float32 { return tensor.F16(binary.LittleEndian.Uint16(src)) }

func putBits16(dst []byte, bits uint16) { binary.LittleEndian.PutUint16(dst, bits) }

// putF16 stores f, which is a float16 value.
func putF16(dst []byte, f float32) { putBits16(dst, tensor.ToF16(f)) }

// nibbles reads 2·len(src) four-bit numbers as most types keep them: the low halves of the bytes, then the high ones.
func nibbles(dst []int8, src []byte) {
	hi := dst[len(src):]
	for j, v := range src {
		dst[j], hi[j] = int8(v&15), int8(v>>4)
	}
}

// putNibbles stores the low four bits of each number as nibbles reads them.
func putNibbles(dst []byte, src []int8) {
	hi := src[len(dst):]
	for j := range dst {
		dst[j] = byte(src[j])&15 | byte(hi[j])<<4
	}
}

// scaleMin6 returns the 6-bit scale and minimum of group g from the 12 bytes of Q4_K and Q5_K. Groups 0 to 3 have
// theirs in the low six bits of bytes g and g+4; groups 4 to 7 have their low nibbles in byte g+4 and the two bits
// above them at the top of the bytes of group g−4.
func scaleMin6(src []byte, g int) (sc, m int8) {
	if g < 4 {
		return int8(src[g] & 63), int8(src[g+4] & 63)
	}
	return int8(src[g+4]&15 | src[g-4]>>6<<4), int8(src[g+4]>>4 | src[g]>>6<<4)
}

// putScaleMin6 stores the scales and minima of eight groups as scaleMin6 reads them.
func putScaleMin6(dst []byte, sc, m []int8) {
	for g := range 4 {
		lo, hi := byte(sc[g]), byte(sc[g+4])
		dst[g] = lo&63 | hi>>4<<6
		mlo, mhi := byte(m[g]), byte(m[g+4])
		dst[g+4] = mlo&63 | mhi>>4<<6
		dst[g+8] = hi&15 | mhi<<4
	}
}
