package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/tensor"
)

// F32 is IEEE 754 binary32: 32 bits per weight.
var F32 = &Type{
	Format: kernels.Format{Name: "F32", BlockLen: 1, BlockBytes: 4, Unpack: tensor.DecodeF32},
	ID:     0,
	encode: func(dst []byte, src []float32) { tensor.EncodeF32(dst, src) },
}

// F16 is IEEE 754 binary16: 16 bits per weight. Encoding saturates at ±65504.
var F16 = &Type{
	Format: kernels.Format{Name: "F16", BlockLen: 1, BlockBytes: 2, Unpack: tensor.DecodeF16},
	ID:     1,
	encode: encodeF16,
}

// BF16 is the upper half of binary32: 16 bits per weight. Encoding saturates at the largest finite bfloat16.
var BF16 = &Type{
	Format: kernels.Format{Name: "BF16", BlockLen: 1, BlockBytes: 2, Unpack: tensor.DecodeBF16},
	ID:     30,
	encode: encodeBF16,
}

// The largest finite values; beyond them rounding would give infinity.
const (
	maxF16  = 65504
	maxBF16 = 0xff << 120 // 0x7f7f: (2 − 2⁻⁷)·2¹²⁷
)

func encodeF16(dst []byte, src []float32) { encodeHalf(dst, src, maxF16, tensor.ToF16) }

func encodeBF16(dst []byte, src []float32) { encodeHalf(dst, src, maxBF16, tensor.ToBF16) }

func encodeHalf(dst []byte, src []float32, limit float32, round func(float32) uint16) {
	for i, v := range src {
		putBits16(dst[2*i:], round(min(max(v, -limit), limit)))
	}
}
