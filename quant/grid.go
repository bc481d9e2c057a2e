package quant

import "github.com/llmq/llmq/tensor"

// Grid is the set of values that a block type can store: blocks of consecutive columns of a row, in groups of columns
// that share a scale. Grids are compared by identity. *Affine is one code a column, *Lattice words of several columns. What a
// grid's codes and scales mean the grid alone knows; they are in a Block.
type Grid interface {
	// String is the block type's name.
	String() string
	// Shape says how columns share what a block stores.
	Shape() Shape
	// Fit chooses the scales of blocks of weights, one after the other in w, so that each block's Σ importance·(w−ŵ)² is
	// small, ŵ being w rounded to the grid. importance, as long as w, may be nil for equal weights. Codes are left alone.
	// Several blocks take less time together, and have the same result.
	Fit(b []Block, w, importance []float32, e Effort)
	// Round sets b's codes to those nearest to w, one block, for the scales that b has. Where one code stands for several
	// columns, importance says what each counts; it may be nil for equal weights.
	Round(b *Block, w, importance []float32)
	// Decode sets dst, one block long, to b's values as a reader of the written block sees them, bit for bit.
	Decode(dst []float32, b *Block)
	// Noise estimates the Σ(w−ŵ)² of b that rounding to nearest makes; see Weight.Noise.
	Noise(b *Block) float64
}

// Shape is how the columns of a row share what a block type stores.
type Shape struct {
	Block int // columns of a block
	Group int // columns that share a scale; it divides Block
	Bits  int // of a column's code
}

// Groups is the number of groups in a block.
func (s Shape) Groups() int { return s.Block / s.Group }

// Effort is how many candidates a fit tries.
type Effort int

const (
	// Full is for weights that are then rounded to nearest.
	Full Effort = iota
	// Coarse is for GPTQ, which makes up for the difference: on gopher-4m its output error is larger by 0.5% (Q4_K) or 1%
	// (Q2_K), and with coordinate descent the same.
	Coarse
)

// Block is the content of one block. What the numbers mean is the grid's.
type Block struct {
	D, DMin float32 // the block's own scale and minimum
	Sc, M   []int8  // those of its groups
	Codes   []int8  // one per column
}

// Weight is an out×in matrix on a grid.
type Weight struct {
	Grid       Grid
	Rows, Cols int
	Codes      []int8    // Rows×Cols
	D, DMin    []float32 // Rows×(Cols/Block)
	Sc, M      []int8    // Rows×(Cols/Group)

	shape Shape
}

// NewWeight returns a zero weight; cols must be a multiple of g's block.
func NewWeight(g Grid, rows, cols int) *Weight {
	s := g.Shape()
	if cols%s.Block != 0 {
		panic("quant: columns are not a multiple of the block")
	}
	blocks, groups := rows*(cols/s.Block), rows*(cols/s.Group)
	return &Weight{
		Grid: g, Rows: rows, Cols: cols, Codes: make([]int8, rows*cols),
		D: make([]float32, blocks), DMin: make([]float32, blocks),
		Sc: make([]int8, groups), M: make([]int8, groups), shape: s,
	}
}

// Block returns block i of a row. Its slices share w's storage; D and DMin are copies: see SetBlock.
func (w *Weight) Block(row, i int) Block {
	s := &w.shape
	k := row*(w.Cols/s.Block) + i
	n := s.Groups()
	c := row*w.Cols + i*s.Block
	return Block{
		D: w.D[k], DMin: w.DMin[k],
		Sc: w.Sc[k*n : (k+1)*n], M: w.M[k*n : (k+1)*n],
		Codes: w.Codes[c : c+s.Block],
	}
}

// SetBlock stores b's D and DMin as those of block i of a row.
func (w *Weight) SetBlock(row, i int, b *Block) {
	k := row*(w.Cols/w.shape.Block) + i
	w.D[k], w.DMin[k] = b.D, b.DMin
}

// SetRow gives w the content of a row of src, which is on the same grid and as wide.
func (w *Weight) SetRow(row int, src *Weight, from int) {
	blocks, groups := w.Cols/w.shape.Block, w.Cols/w.shape.Group
	copy(w.Codes[row*w.Cols:(row+1)*w.Cols], src.Codes[from*w.Cols:])
	copy(w.D[row*blocks:(row+1)*blocks], src.D[from*blocks:])
	copy(w.DMin[row*blocks:(row+1)*blocks], src.DMin[from*blocks:])
	copy(w.Sc[row*groups:(row+1)*groups], src.Sc[from*groups:])
	copy(w.M[row*groups:(row+1)*groups], src.M[from*groups:])
}

// DecodeTo sets dst, Rows×Cols, to the values that a reader of the written blocks will see.
func (w *Weight) DecodeTo(dst *tensor.Matrix) {
	n := w.shape.Block
	for r := range w.Rows {
		out := dst.Row(r)
		for i := range w.Cols / n {
			b := w.Block(r, i)
			w.Grid.Decode(out[i*n:(i+1)*n], &b)
		}
	}
}

// Noise returns the estimate of ‖W−Ŵ‖² that rounding to nearest makes, Δ²/12 for each weight, where Δ is the width of
// the cell of values that share its code: the scale, or half the distance between a codebook's neighbouring levels on
// both sides. Clipping is not in it, nor what a method adds to make up for other errors: a measured error well above it
// shows them, and one below it weights that sit on the grid.
func (w *Weight) Noise() float64 {
	var sum float64
	for r := range w.Rows {
		for i := range w.Cols / w.shape.Block {
			b := w.Block(r, i)
			sum += w.Grid.Noise(&b)
		}
	}
	return sum
}
