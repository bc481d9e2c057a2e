// Package ggml implements ggml's block types: how many weights share a block, what its bytes mean, and how to choose
// them. One file holds one type.
package ggml

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// Type is one of ggml's storage types.
type Type struct {
	kernels.Format
	ID uint32 // the number that GGUF files use (enum ggml_type)
	// Grid is the set of values that the type can store; nil for the floating-point types.
	Grid *quant.Grid
	// Pack stores a block's scales and codes; it never rounds. len(dst) is BlockBytes. nil for floating-point types.
	Pack func(dst []byte, b *quant.Block)
	// Parse is Pack's inverse; b's slices must have the grid's lengths.
	Parse func(b *quant.Block, src []byte)
}
