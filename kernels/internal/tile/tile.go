// Package tile holds what blocked products are made of: micro-kernels, which compute a tile of the result in registers, and
// the packing of operands for them. Packed operands are 32-bit words: a float32, or two bfloat16 values that are neighbours
// in the summed dimension.
package tile

import (
	"math"
	"unsafe"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/tensor"
)

// MicroKernel computes a tile of rows×(2 vectors): see _asm/tile.go.
type MicroKernel struct {
	Rows int
	Run  func(k int, a *uint32, rowA, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool,
		next *uint32, stepNext int)
	// Many, where not nil, is Run for tiles side by side, whose strips of B follow each other, in less time than one by one.
	Many manyTiles
}

type manyTiles func(strips, k int, a *uint32, rowA, stepA int, b *uint32, c *float32, rowC int, alpha float32, add bool, next *uint32, stepNext int)

// RunMany computes tiles side by side. A tile's strip of B, and what it brings of next, begin stripB and part words after those of
// the tile before it.
func (m *MicroKernel) RunMany(strips, strip, k int, a *uint32, rowA, stepA int, b []uint32, c []float32, rowC int, alpha float32, add bool,
	next []uint32, part, stepNext int) {
	if strips <= 0 {
		return
	}
	if m.Many != nil {
		m.Many(strips, k, a, rowA, stepA, &b[0], &c[0], rowC, alpha, add, &next[0], stepNext)
		return
	}
	for i := range strips {
		m.Run(k, a, rowA, stepA, &b[i*k*strip], &c[i*strip], rowC, alpha, add, &next[i*part], stepNext)
	}
}

// Tiling is what a blocked product needs to know of a tier. Packed operands are 32-bit words: a float32, or with
// pairs two bfloat16 values that are neighbours in the summed dimension, so that a step is one word deep.
type Tiling struct {
	Lanes int  // words of a vector; a strip of B is two vectors wide, a tile of C as wide as a strip
	KC    int  // steps that are summed in registers before they are added to C
	NC    int  // columns of B that are packed at a time, a multiple of a strip
	Pairs bool // words are bfloat16 pairs
	// RowsOnly: the kernels' stepA is 4. Steps of a row of A follow each other.
	RowsOnly bool
	Kernels  []MicroKernel // ascending rows; the last is the height of a panel of A

	// Transpose sets dst[j][i] = src[i][j] for i < Lanes, j < Lanes·n.
	Transpose func(dst *uint32, rowDst int, src *uint32, rowSrc, n int)
	// CopyStrip copies two vectors of n steps: of a row each, or of two rows rounded to pairs.
	CopyStrip func(dst *uint32, src *uint32, rowSrc, n int)
	// CopyWords is CopyStrip, with pairs, of rows that are pairs already.
	CopyWords func(dst *uint32, src *uint32, rowSrc, n int)
	// Weave, where not nil, brings n pairs of steps of a packed strip into the order that the kernels take them in. A last step that
	// is alone stays as it is.
	Weave func(strip *uint32, n int)
}

// Panel is the height of a panel of A, Strip the width of a strip of B.
func (t *Tiling) Panel() int { return t.Kernels[len(t.Kernels)-1].Rows }
func (t *Tiling) Strip() int { return 2 * t.Lanes }

// Depth is how many elements of the summed dimension a word holds.
func (t *Tiling) Depth() int {
	if t.Pairs {
		return 2
	}
	return 1
}

// Weights is the number of elements of the summed dimension in a block.
func (t *Tiling) Weights() int { return t.KC * t.Depth() }

// Takes says whether blocks of w's format divide the blocks of a product; t may be nil, which takes nothing.
func (t *Tiling) Takes(w *kernels.Weights) bool {
	return t != nil && t.Weights()%w.Format.BlockLen == 0
}

// Kernel returns the smallest micro-kernel of at least rows rows.
func (t *Tiling) Kernel(rows int) MicroKernel {
	for _, k := range t.Kernels {
		if k.Rows >= rows {
			return k
		}
	}
	panic("tile: more rows than a panel has")
}

// Operand is a factor of a product: one of a matrix whose rows run along the summed dimension, a matrix whose columns
// do, or quantized weights, whose rows do.
type Operand struct {
	Rows    *tensor.Matrix
	Cols    *tensor.Matrix
	Weights *kernels.Weights
	// Decoders of Weights, nil if there are none.
	f32, bf16 unpack.Decoder
}

// RowsOf is m as an operand whose rows run along the summed dimension, ColsOf one whose columns do.
func RowsOf(m *tensor.Matrix) Operand { return Operand{Rows: m} }
func ColsOf(m *tensor.Matrix) Operand { return Operand{Cols: m} }

// WeightsOf is w as an operand.
func WeightsOf(w *kernels.Weights) Operand {
	return Operand{Weights: w, f32: unpack.DecoderF32(w.Format), bf16: unpack.DecoderBF16(w.Format)}
}

// ToWords sets dst to src, as it is or in bfloat16 pairs.
func (t *Tiling) ToWords(dst []uint32, src []float32) {
	if t.Pairs {
		pack.BF16(dst, src)
	} else {
		copy(words.Floats(dst), src)
	}
}

// PackB packs a strip, columns [j0,j1) of b, which has k elements in the summed dimension: steps [s0,s1) one after the
// other, zero where the strip is cut off.
func (t *Tiling) PackB(b *Operand, k int, dst, staging []uint32, j0, j1, s0, s1 int) {
	t.packSteps(b, k, dst, staging, j0, j1, s0, s1)
	if pairs := (s1 - s0) / 2; t.Weave != nil && pairs > 0 {
		t.Weave(&dst[0], pairs)
	}
}

// packSteps is PackB without weaving.
func (t *Tiling) packSteps(b *Operand, k int, dst, staging []uint32, j0, j1, s0, s1 int) {
	n := s1 - s0
	if m := b.Cols; m != nil {
		k0, k1 := s0*t.Depth(), min(s1*t.Depth(), k)
		whole := (k1 - k0) / t.Depth() // steps that are there in full
		if j1-j0 < t.Strip() {
			whole = 0
		}
		if whole > 0 {
			t.CopyStrip(&dst[0], words.Of(&m.Data[k0*m.Stride+j0]), 4*m.Stride, whole)
			dst, k0 = dst[whole*t.Strip():], k0+whole*t.Depth()
		}
		if t.Pairs {
			t.PackPairs(m.View(k0, k1, j0, j1), dst)
			return
		}
		for ; k0 < k1; k0++ {
			row := dst[:t.Strip()]
			dst = dst[t.Strip():]
			copy(words.Floats(row), m.Row(k0)[j0:j1])
			clear(row[j1-j0:])
		}
		return
	}
	// Rows of B become columns of the strip. As many vectors' width of them as a cache line of it holds are transposed by turns, so that
	// a line is written once.
	pitch, group := pack.Pitch(t.KC), t.group()
	for from := 0; from < t.Strip(); from += group {
		var src [2]*uint32 // a vector's width of rows each, rowSrc bytes apart, of so many whole vectors of steps
		var rowSrc, vectors [2]int
		for v := range group / t.Lanes {
			j := j0 + from + v*t.Lanes
			rows := max(0, min(t.Lanes, j1-j))
			if m := b.Rows; m != nil && rows == t.Lanes && !t.Pairs {
				src[v], rowSrc[v], vectors[v] = words.Of(&m.Data[j*m.Stride+s0]), 4*m.Stride, n/t.Lanes
				for s := vectors[v] * t.Lanes; s < n; s++ {
					for y := range rows {
						dst[s*t.Strip()+from+v*t.Lanes+y] = math.Float32bits(m.Data[(j+y)*m.Stride+s0+s])
					}
				}
				continue
			}
			staged := staging[v*t.Lanes*pitch:]
			for y := range t.Lanes {
				row := staged[y*pitch:][:n]
				if y >= rows {
					clear(row)
					continue
				}
				if w := b.Weights; w != nil {
					unpack.ReadAhead(w, j+y, w.Format.RowBytes(s0*t.Depth()), w.Format.RowBytes(min(s1*t.Depth(), k)))
				}
				t.rowB(b, row, staging[group*pitch:], j+y, s0*t.Depth(), min(s1*t.Depth(), k))
			}
			src[v], rowSrc[v], vectors[v] = &staged[0], 4*pitch, (n+t.Lanes-1)/t.Lanes
		}
		const turn = 8 // vectors
		for u := 0; u < max(vectors[0], vectors[1]); u += turn {
			for v := range group / t.Lanes {
				if m := min(turn, vectors[v]-u); m > 0 {
					t.Transpose(&dst[u*t.Lanes*t.Strip()+from+v*t.Lanes], 4*t.Strip(), wordAfter(src[v], u*t.Lanes), rowSrc[v], m)
				}
			}
		}
	}
}

// group is how many rows of B are transposed by turns.
func (t *Tiling) group() int { return min(t.Strip(), max(t.Lanes, 16)) }

// wordAfter is the word n words after p.
func wordAfter(p *uint32, n int) *uint32 { return (*uint32)(unsafe.Add(unsafe.Pointer(p), 4*n)) }

// PackPairs packs a strip whose columns are m's: a step holds two rows, the last with zeros if there is one alone.
func (t *Tiling) PackPairs(m *tensor.Matrix, dst []uint32) {
	var even, odd [16]uint32 // a strip's width of bfloat16 values
	for y := 0; y < m.Rows; y += 2 {
		row := dst[:t.Strip()]
		dst = dst[t.Strip():]
		clear(row[m.Cols:])
		clear(odd[:])
		pack.BF16(even[:], m.Row(y))
		if y+1 < m.Rows {
			pack.BF16(odd[:], m.Row(y+1))
		}
		for x := range (m.Cols + 1) / 2 {
			row[2*x] = even[x]&0xffff | odd[x]<<16
			row[2*x+1] = even[x]>>16 | odd[x]&0xffff0000
		}
	}
}

// StagingWords is the size of the buffer in which rows of B await transposition: a group of rows, and one row unpacked.
func (t *Tiling) StagingWords() int { return t.group()*pack.Pitch(t.KC) + t.Weights() }

// rowB sets dst to elements [k0,k1) of row j of B.
func (t *Tiling) rowB(b *Operand, dst, row []uint32, j, k0, k1 int) {
	if m := b.Rows; m != nil {
		t.ToWords(dst, m.Row(j)[k0:k1])
		return
	}
	f := b.Weights.Format
	src := b.Weights.Row(j)[f.RowBytes(k0):f.RowBytes(k1)]
	if t.Pairs {
		unpack.BF16(f, b.bf16, dst, src, k1-k0, words.Floats(row))
	} else {
		unpack.F32By(f, b.f32, words.Floats(dst[:k1-k0]), src)
	}
}
