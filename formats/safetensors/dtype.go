package safetensors

import (
	"math/bits"

	st "github.com/nlpodyssey/safetensors"
)

// DType is the type of a tensor's elements, by the name that headers give it.
type DType string

// Types of the format. The library that validates headers knows the first three rows; the narrow floats are ours.
const (
	F64, F32, F16, BF16 DType = "F64", "F32", "F16", "BF16"
	I64, I32, I16, I8   DType = "I64", "I32", "I16", "I8"
	U64, U32, U16, U8   DType = "U64", "U32", "U16", "U8"
	Bool                DType = "BOOL"

	F8E4M3  DType = "F8_E4M3" // OCP E4M3: no infinities, NaN is 0x7f and 0xff
	F8E5M2  DType = "F8_E5M2"
	F8E8M0  DType = "F8_E8M0" // a power of two; 0xff is NaN
	F4      DType = "F4"      // OCP E2M1, two a byte
	F6E2M3  DType = "F6_E2M3"
	F6E3M2  DType = "F6_E3M2"
	Complex DType = "C64"
)

var narrow = map[DType]uint64{F8E4M3: 8, F8E5M2: 8, F8E8M0: 8, F4: 4, F6E2M3: 6, F6E3M2: 6, Complex: 64}

// Bits is the size of an element; 0 if there is no such type.
func (d DType) Bits() uint64 {
	if known, err := st.ParseDType(string(d)); err == nil {
		return 8 * known.Size()
	}
	return narrow[d]
}

func (d DType) String() string { return string(d) }

// size is what a tensor needs: bytes, and bits beside them. It is not ok where 64 bits do not hold it.
func size(d DType, shape []int) (bytes, rest uint64, ok bool) {
	n, hi := uint64(1), uint64(0)
	for _, dim := range shape {
		if hi, n = bits.Mul64(n, uint64(dim)); hi != 0 {
			return 0, 0, false
		}
	}
	hi, n = bits.Mul64(n, d.Bits())
	return hi<<61 | n>>3, n % 8, hi < 8
}
