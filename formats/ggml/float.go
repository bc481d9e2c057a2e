package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/encode"
	"github.com/llmq/llmq/tensor"
)

// F32 is IEEE 754 binary32: 32 bits per weight.
var F32 = &Type{
	Format: kernels.Format{Name: "F32", BlockLen: 1, BlockBytes: 4, Unpack: tensor.DecodeF32},
	ID:     0,
	encode: tensor.EncodeF32,
}

// F16 is IEEE 754 binary16: 16 bits per weight. Encoding saturates at ±65504.
var F16 = &Type{
	Format: kernels.Format{Name: "F16", BlockLen: 1, BlockBytes: 2, Unpack: tensor.DecodeF16},
	ID:     1,
	encode: encode.F16,
}

// BF16 is the upper half of binary32: 16 bits per weight. Encoding saturates at the largest finite bfloat16.
var BF16 = &Type{
	Format: kernels.Format{Name: "BF16", BlockLen: 1, BlockBytes: 2, Unpack: tensor.DecodeBF16},
	ID:     30,
	encode: encode.BF16,
}
