// Package ggml implements ggml's block types: how many weights share a block, what its bytes mean, and how to choose
// them. One file holds one type, named as in ggml's ggml-common.h, whose layouts these are; all numbers are
// little-endian. The decoders agree with ggml's bit for bit.
//
// Encoding has two halves. A grid's Fit chooses a block's scales (see fit.go), and Pack stores scales and codes without
// rounding anything, so that whoever chose the codes, GPTQ for one, gets exactly those back from Unpack.
package ggml

import (
	"fmt"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/unpack"
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

	encode func(dst []byte, src []float32) // the floating-point types' conversion
	plain  *plain                          // a shorter way for weights of equal importance, or nil
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

// batch is room for the blocks that are searched together.
type batch struct {
	block [kernels.Lanes]quant.Block
	sc, m [kernels.Lanes * maxGroups]int8
	codes [kernels.Lanes * maxBlock]int8
}

var batches = sync.Pool{New: func() any { return new(batch) }}

// Encode stores the weights w, whole blocks of one row, in dst, which is RowBytes(len(w)) long. Each block's scales are
// chosen so that Σ importance·(w−ŵ)² is small; importance has one value per weight, or is nil for equal ones. Weights
// beyond what the type can hold are stored as its nearest value; they should be finite. The result is the Σ(w−ŵ)² that
// rounding is expected to make: see quant.Block.Noise. For floating-point types it is 0.
func (t *Type) Encode(dst []byte, w, importance []float32) (noise float64) {
	if len(w)%t.BlockLen != 0 || len(dst) != t.RowBytes(len(w)) || importance != nil && len(importance) != len(w) {
		panic(fmt.Sprintf("ggml: %s: %d bytes for %d weights and %d importances", t.Name, len(dst), len(w), len(importance)))
	}
	if t.Grid == nil {
		t.encode(dst, w)
		return 0
	}
	if importance == nil && t.plain != nil {
		return t.plain.encode(t, dst, w)
	}
	g := t.Grid
	n := g.Groups()
	a := batches.Get().(*batch)
	defer batches.Put(a)
	for i := range a.block {
		a.block[i] = quant.Block{Sc: a.sc[i*n : (i+1)*n], M: a.m[i*n : (i+1)*n], Codes: a.codes[i*g.Block : (i+1)*g.Block]}
	}
	blocks := len(w) / g.Block
	for i := 0; i < blocks; i += len(a.block) {
		bs := a.block[:min(len(a.block), blocks-i)]
		lo, hi := i*g.Block, (i+len(bs))*g.Block
		var imp []float32
		if importance != nil {
			imp = importance[lo:hi]
		}
		g.Round(bs, w[lo:hi], imp)
		for k := range bs {
			b := &bs[k]
			t.Pack(dst[(i+k)*t.BlockBytes:(i+k+1)*t.BlockBytes], b)
			noise += b.Noise(g)
		}
	}
	return noise
}

// Decode sets dst, whole blocks of one row, to the values that src holds.
func (t *Type) Decode(dst []float32, src []byte) {
	if len(dst)%t.BlockLen != 0 || len(src) != t.RowBytes(len(dst)) {
		panic(fmt.Sprintf("ggml: %s: %d bytes for %d weights", t.Name, len(src), len(dst)))
	}
	unpack.F32(&t.Format, dst, src)
}
