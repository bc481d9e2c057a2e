// Package kernels is what the rooms below it share: the tiers of the machine, the spreading of work over its processors,
// and the matrices that they work on. The rooms hold the few loops that everything else is bounded by:
//
//	vector       dot products and sums of vectors
//	elementwise  normalization, rotation, SiLU, exponentials
//	gemm         matrix products over plain and quantized weights, symmetric rank-k updates
//	attention    causal attention
//	q8           products with inputs that are rounded to eight bits, in integers
//	i8           products of signed bytes
//	unpack       decoders of block types
//	encode       encoders of float16, bfloat16 and of blocks with given scales
//	search       searches for the scales of blocks
//	codebook     searches of codebooks for the nearest words
//	columns      rounding and updating of columns, of 16 rows at a time
//	peak         the machine's limits
//
// Each has a plain Go reference that always compiles; faster versions, in assembly that kernels/_asm generates, are
// chosen at run time.
//
// Work is spread over Processors() goroutines. Every output element is summed by one of them in a fixed
// order, so results do not depend on the thread count.
package kernels

import "github.com/llmq/llmq/tensor"

//go:generate go run -C _asm . -dir ..

// Format describes how a block type stores consecutive weights of a row.
type Format struct {
	Name       string // "Q4_K"
	BlockLen   int    // weights in a block
	BlockBytes int    // bytes of a block
	// Unpack is the plain decoder: len(dst) is a multiple of BlockLen, src holds as many blocks.
	Unpack func(dst []float32, src []byte)
	// Levels is nil for the floating-point types.
	Levels *LevelFormat
	// Words is the table of a type of codebooks: the levels of each word, a byte each. Without it there is no fast decoder.
	Words []byte
}

// RowBytes is the size of cols weights; cols must be a multiple of BlockLen.
func (f *Format) RowBytes(cols int) int { return cols / f.BlockLen * f.BlockBytes }

// LevelFormat is how a block type stores whole numbers: a weight of a group is scale·level − minimum.
type LevelFormat struct {
	Group    int  // weights that share a scale and a minimum, 16 or 32; it divides the block
	Minimums bool // the type has minimums; its levels are from 0 to 127 then, otherwise from −128 to 127
	Bits     int  // 4, 6 or 8, the fewest that hold the levels: from 0 if there are minimums, otherwise in two's complement
	// Unpack is the plain decoder: len(level) is a multiple of BlockLen, src holds as many blocks, scale and minimum have
	// an element for each group.
	Unpack func(level []int8, scale, minimum []float32, src []byte)
}

// Weights is an out×in matrix in a block format, one row after the other.
type Weights struct {
	Rows, Cols int
	Format     *Format
	Data       []byte
}

// Row returns the bytes of row i.
func (w *Weights) Row(i int) []byte {
	n := w.Format.RowBytes(w.Cols)
	return w.Data[i*n : (i+1)*n]
}

// Product is one of several products X·Wᵀ that share their inputs.
type Product struct {
	Dst *tensor.Matrix // tokens×out
	W   *Weights       // out×in
}

// Precision is what matrix products round their inputs to. Sums are always float32.
type Precision int

const (
	// Auto may round inputs to bfloat16 where the machine multiplies those faster.
	Auto Precision = iota
	// F32 keeps activations and unpacked weights in float32.
	F32
)

// Rounds says whether products round their inputs to bfloat16: p allows it, and the tier in use is faster for it.
func (p Precision) Rounds() bool { return p == Auto && CurrentTier().Rounds() }

// Lanes is how many groups of weights, or rows, are worked on together by what takes one of them in each lane.
const Lanes = 16

// Lane is one value for each of Lanes groups or rows.
type Lane = [Lanes]float32
