// Package quant holds what every quantization method shares: the grid of values that a block type can store, a weight
// on that grid, and the statistics of the inputs that a linear sees.
package quant

import "github.com/llmq/llmq/tensor"

// Grid describes the values that a block type can store. A block holds Block consecutive columns of a row in groups of
// Group columns; a weight in group g with code q decodes, in float32 and in this order, to
//
//	scale := d·sc[g]        minimum := dmin·m[g]
//	value := scale·level(q) − minimum
//
// where level(q) is q, or Codebook[q] for the non-linear types. d and dmin are float16 values, sc and m small integers.
// Types with one scale per block have Group == Block and ScaleMin == ScaleMax == 1, so that scale is d itself.
type Grid struct {
	Name               string
	Block, Group       int
	CodeMin, CodeMax   int       // codes are in [CodeMin, CodeMax]
	Codebook           []float32 // ascending levels of the codes from CodeMin on; nil where a code is its own level
	ScaleMin, ScaleMax int       // range of sc
	MinMax             int       // m is in [0, MinMax]; 0: the type has no minimum; 1: dmin alone, of either sign
	// Fit chooses d, dmin, sc and m for blocks of weights, one after the other in w, so that each block's
	// Σ importance·(w−ŵ)² is small, ŵ being w rounded to the grid. importance, as long as w, may be nil for equal weights.
	// It fills Sc and M and leaves Codes alone. Several blocks take less time together, and have the same result.
	Fit func(b []Block, w, importance []float32)
	// FitCoarse, where it is not nil, is Fit with fewer candidates. It is for GPTQ, which makes up for the difference: on
	// gopher-4m its output error is larger by 0.5% (Q4_K) or 1% (Q2_K), and with coordinate descent the same.
	FitCoarse func(b []Block, w, importance []float32)
}

// Groups is the number of groups in a block.
func (g *Grid) Groups() int { return g.Block / g.Group }

// Block is the content of one block.
type Block struct {
	D, DMin float32 // exactly representable in float16
	Sc, M   []int8  // one per group
	Codes   []int8  // one per column
}

// Scale returns group g's scale and minimum as the decoder computes them.
func (b *Block) Scale(g int) (scale, minimum float32) {
	return b.D * float32(b.Sc[g]), b.DMin * float32(b.M[g])
}

// Level returns the level of code q.
func (g *Grid) Level(q int8) float32 {
	if g.Codebook != nil {
		return g.Codebook[int(q)-g.CodeMin]
	}
	return float32(q)
}

// Weight is an out×in matrix on a grid.
type Weight struct {
	Grid       *Grid
	Rows, Cols int
	Codes      []int8    // Rows×Cols
	D, DMin    []float32 // Rows×(Cols/Block)
	Sc, M      []int8    // Rows×(Cols/Group)
}

// NewWeight returns a zero weight; cols must be a multiple of g.Block.
func NewWeight(g *Grid, rows, cols int) *Weight {
	if cols%g.Block != 0 {
		panic("quant: columns are not a multiple of the block")
	}
	blocks, groups := rows*(cols/g.Block), rows*(cols/g.Group)
	return &Weight{
		Grid: g, Rows: rows, Cols: cols, Codes: make([]int8, rows*cols),
		D: make([]float32, blocks), DMin: make([]float32, blocks),
		Sc: make([]int8, groups), M: make([]int8, groups),
	}
}

// Block returns block i of a row. Its slices share w's storage; D and DMin are copies: see SetBlock.
func (w *Weight) Block(row, i int) Block {
	g := w.Grid
	k := row*(w.Cols/g.Block) + i
	n := g.Groups()
	c := row*w.Cols + i*g.Block
	return Block{
		D: w.D[k], DMin: w.DMin[k],
		Sc: w.Sc[k*n : (k+1)*n], M: w.M[k*n : (k+1)*n],
		Codes: w.Codes[c : c+g.Block],
	}
}

// SetBlock stores b's D and DMin as those of block i of a row.
func (w *Weight) SetBlock(row, i int, b *Block) {
	k := row*(w.Cols/w.Grid.Block) + i
	w.D[k], w.DMin[k] = b.D, b.DMin
}

// DecodeTo sets dst, Rows×Cols, to the values that a reader of the written blocks will see.
func (w *Weight) DecodeTo(dst *tensor.Matrix) {
	g := w.Grid
	for r := range w.Rows {
		out := dst.Row(r)
		for i := range w.Cols / g.Block {
			b := w.Block(r, i)
			b.Decode(g, out[i*g.Block:(i+1)*g.Block])
		}
	}
}

// Decode sets dst, g.Block long, to the block's values.
func (b *Block) Decode(g *Grid, dst []float32) {
	for k := range g.Groups() {
		scale, minimum := b.Scale(k)
		for j := k * g.Group; j < (k+1)*g.Group; j++ {
			// The conversion forbids a fused multiply-add, which other decoders do not use.
			dst[j] = float32(scale*g.Level(b.Codes[j])) - minimum
		}
	}
}
