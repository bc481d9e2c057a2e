//go:build !amd64 || purego

package unpack

import "github.com/llmq/llmq/kernels"

// DecoderF32 returns the tier's decoder, nil: there is none.
func DecoderF32(*kernels.Format) Decoder { return nil }

// DecoderBF16 returns the tier's decoder to bfloat16, nil: there is none.
func DecoderBF16(*kernels.Format) Decoder { return nil }

// DecoderLevels returns the decoder of blocks to their whole numbers, nil: there is none.
func DecoderLevels(*kernels.Format) func(level *byte, scale, minimum *float32, src *byte, n int) {
	return nil
}
