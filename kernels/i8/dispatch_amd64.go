//go:build !purego

package i8

import "github.com/llmq/llmq/kernels"

var (
	tierAVX2   = kernelSet{int8RowAVX2x1, int8RowAVX2x4, int8GroupsAVX2x1, int8GroupsAVX2x4}
	tierAVX512 = kernelSet{int8RowAVX512x1, int8RowAVX512x4, int8GroupsAVX512x1, int8GroupsAVX512x4}
)

// tier returns the kernels of the tier in use, nil in pure Go.
func tier() *kernelSet {
	switch t := kernels.CurrentTier(); {
	case t >= kernels.AVX512:
		return &tierAVX512
	case t >= kernels.AVX2:
		return &tierAVX2
	}
	return nil
}
