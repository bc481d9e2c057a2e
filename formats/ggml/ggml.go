// Package ggml implements ggml's block types: how many weights share a block, what its bytes mean, and how to choose
// them. One file holds one type, named as in ggml's ggml-common.h, whose layouts these are; all numbers are
// little-endian. The decoders agree with ggml's bit for bit.
//
// Encoding has two halves. A grid's Fit chooses a block's scales (package fit), and Pack stores scales and codes without
// rounding anything, so that whoever chose the codes, GPTQ for one, gets exactly those back from Unpack.
package ggml

import (
	"fmt"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/quant"
)

// Type is one of ggml's storage types.
type Type struct {
	kernels.Format
	ID uint32 // the number that GGUF files use (enum ggml_type)
	// ByRequest: the type is for models of its kind, or for who asks for it; what chooses types by itself does not offer it.
	ByRequest bool
	// Grid is the set of values that the type can store; nil for the floating-point types.
	Grid quant.Grid
	// Pack stores a block's scales and codes; it never rounds. len(dst) is BlockBytes. nil for floating-point types.
	Pack func(dst []byte, b *quant.Block)
	// Parse is Pack's inverse; b's slices must have the grid's lengths.
	Parse func(b *quant.Block, src []byte)

	encode func(dst []byte, src []float32)      // the floating-point types' conversion
	round  func(dst []byte, w, scale []float32) // rounds to nearest and packs, where there is a way to do both at once; or nil
}

// BitsPerWeight is the storage cost of a weight, scales included: 4.5 for Q4_K.
func (t *Type) BitsPerWeight() float64 { return 8 * float64(t.BlockBytes) / float64(t.BlockLen) }

// String returns the type's name.
func (t *Type) String() string { return t.Name }

// maxBlock and maxGroups bound every grid's block, so that scratch space can live on the stack.
const (
	maxBlock  = 256
	maxGroups = 16
)

// Decode sets dst, whole blocks of one row, to the values that src holds.
func (t *Type) Decode(dst []float32, src []byte) {
	if len(dst)%t.BlockLen != 0 || len(src) != t.RowBytes(len(dst)) {
		panic(fmt.Sprintf("ggml: %s: %d bytes for %d weights", t.Name, len(src), len(dst)))
	}
	unpack.F32(&t.Format, dst, src)
}
