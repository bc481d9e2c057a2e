package tensor

import (
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/x448/float16"
)

// F16 returns the float32 value of IEEE 754 binary16 bits.
func F16(bits uint16) float32 { return float16.Frombits(bits).Float32() }

// ToF16 rounds f to the nearest binary16, ties to even; what is too large becomes infinite.
func ToF16(f float32) uint16 { return float16.Fromfloat32(f).Bits() }

// RoundF16 returns f rounded to the nearest binary16 value.
func RoundF16(f float32) float32 { return F16(ToF16(f)) }

// BF16 returns the float32 value of bfloat16 bits.
func BF16(bits uint16) float32 { return math.Float32frombits(uint32(bits) << 16) }

// ToBF16 rounds f to the nearest bfloat16, ties to even. NaN stays a quiet NaN.
func ToBF16(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7fffffff > 0x7f800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

// DecodeF16 sets dst[i] to the i-th little-endian binary16 of src.
func DecodeF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = F16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// DecodeBF16 sets dst[i] to the i-th little-endian bfloat16 of src.
func DecodeBF16(dst []float32, src []byte) {
	src = src[:2*len(dst)]
	for len(dst) >= 4 { // four to a word: half the time
		w := binary.LittleEndian.Uint64(src)
		dst[0], dst[1] = BF16(uint16(w)), BF16(uint16(w>>16))
		dst[2], dst[3] = BF16(uint16(w>>32)), BF16(uint16(w>>48))
		dst, src = dst[4:], src[8:]
	}
	for i := range dst {
		dst[i] = BF16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

// EncodeBF16 stores src as little-endian bfloat16.
func EncodeBF16(dst []byte, src []float32) {
	for i, f := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], ToBF16(f))
	}
}

// DecodeF32 sets dst[i] to the i-th little-endian float32 of src.
func DecodeF32(dst []float32, src []byte) {
	if littleEndian {
		copy(bytesOf(dst), src[:4*len(dst)])
		return
	}
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

// littleEndian: the machine has numbers in memory as files have them.
var littleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

// bytesOf is v as it is in memory.
func bytesOf(v []float32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), 4*len(v))
}

// F32Bytes returns v as little-endian float32: the same memory, where the machine has it so.
func F32Bytes(v []float32) []byte {
	if littleEndian {
		return bytesOf(v)
	}
	b := make([]byte, 4*len(v))
	EncodeF32(b, v)
	return b
}

// EncodeF32 stores src as little-endian float32.
func EncodeF32(dst []byte, src []float32) {
	if littleEndian {
		copy(dst[:4*len(src)], bytesOf(src))
		return
	}
	for i, f := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(f))
	}
}
