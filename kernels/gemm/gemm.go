// Package gemm multiplies matrices: activations with plain and quantized weights, and what GPTQ and SmoothQuant need, sums
// over tokens and updates of blocks. One routine, a blocked product after Goto and van de Geijn (ACM TOMS 34(3), 2008),
// serves all of them: they differ in how their operands lie in memory, which only packing sees (package tile). Up to four
// tokens are multiplied row by row instead.
package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/tensor"
)

// MatMul sets dst = X·Wᵀ; X is tokens×in, W out×in in any block format, dst tokens×out.
func MatMul(dst, x *tensor.Matrix, w *kernels.Weights, p kernels.Precision) {
	MatMulMany(x, p, kernels.Product{Dst: dst, W: w})
}

// MatMulMany is MatMul of x, tokens×in, for each of the products: x is rounded and packed once for all of them.
func MatMulMany(x *tensor.Matrix, p kernels.Precision, products ...kernels.Product) {
	t := tile.For(p)
	few := x.Rows <= FewTokens && x.Rows > 0 && x.Cols > 0
	a := tile.RowsOf(x)
	var results []result
	for _, pr := range products {
		checkMatMul(pr.Dst, x, pr.W.Rows, pr.W.Cols)
		switch {
		case !t.Takes(pr.W):
			matMulGo(pr.Dst, x, pr.W)
		case few:
			matMulFew(pr.Dst, x, pr.W, p)
		default:
			results = append(results, result{c: pr.Dst, b: tile.WeightsOf(pr.W)})
		}
	}
	if len(results) > 0 {
		product(t, 1, &a, x.Cols, store, results...)
	}
}

// MatMulAdd sets dst += X·Wᵀ; shapes are MatMul's.
func MatMulAdd(dst, x *tensor.Matrix, w *kernels.Weights, p kernels.Precision) {
	checkMatMul(dst, x, w.Rows, w.Cols)
	t := tile.For(p)
	if x.Rows > FewTokens && t.Takes(w) {
		a := tile.RowsOf(x)
		product(t, 1, &a, x.Cols, add, result{c: dst, b: tile.WeightsOf(w)})
		return
	}
	buf := words.Get(dst.Rows * dst.Cols)
	defer words.Put(buf)
	sum := tensor.FromSlice(dst.Rows, dst.Cols, words.Floats(buf))
	MatMul(sum, x, w, p)
	elementwise.Add(dst, sum)
}

// MatMulF32 sets dst = X·Wᵀ; X is tokens×in, W out×in, dst tokens×out.
func MatMulF32(dst, x, w *tensor.Matrix) {
	checkMatMul(dst, x, w.Rows, w.Cols)
	t := tile.For(kernels.F32)
	if t == nil {
		matMulF32Go(dst, x, w)
		return
	}
	a := tile.RowsOf(x)
	product(t, 1, &a, x.Cols, store, result{c: dst, b: tile.RowsOf(w)})
}

// MatMulLower sets dst = X·Lᵀ; X and dst are m×n, L n×n and lower triangular, zeros above its diagonal included, with which nothing
// is multiplied: half of the arithmetic of MatMulF32.
func MatMulLower(dst, x, l *tensor.Matrix) {
	checkMatMul(dst, x, l.Rows, l.Cols)
	if l.Rows != l.Cols {
		panic("gemm: a triangular matrix is square")
	}
	t := tile.For(kernels.F32)
	if t == nil {
		matMulLowerGo(dst, x, l)
		return
	}
	a := tile.RowsOf(x)
	product(t, 1, &a, x.Cols, storeLower, result{c: dst, b: tile.RowsOf(l)})
}

func checkMatMul(dst, x *tensor.Matrix, out, in int) {
	if dst.Rows != x.Rows || dst.Cols != out || x.Cols != in {
		panic("gemm: matmul shapes do not agree")
	}
}

// Release gives back the memory that products keep for the next ones: as much as the largest of them took at a time.
func Release() { words.Release() }

// Syrk sets dst += XᵀX; X is tokens×in, dst in×in and symmetric (both triangles are kept).
//
// Tokens are summed in registers in blocks of at most 512, and the blocks' sums added to dst: for n tokens the error of
// an element is at most (512 + n/512)·2⁻²⁴·Σ|x_i·x_j|, and about the root of that in practice. If p.Rounds(), the blocks
// are of 1024, and inputs are first rounded, by at most 2⁻⁸ of themselves.
func Syrk(dst, x *tensor.Matrix, p kernels.Precision) {
	SyrkLower(dst, x, p)
	mirror(dst)
}

// SyrkLower is Syrk for the part of dst on and below the diagonal; what is above becomes undefined.
func SyrkLower(dst, x *tensor.Matrix, p kernels.Precision) {
	if dst.Rows != x.Cols || dst.Cols != x.Cols {
		panic("gemm: syrk shapes do not agree")
	}
	t := tile.For(p)
	if t == nil {
		syrkGo(dst, x)
		return
	}
	productOfRows(t, dst, 1, x, x, addLower)
}

// mirror copies the lower triangle of a square matrix onto the upper one.
func mirror(m *tensor.Matrix) {
	// Square blocks keep the pages and lines that are written by columns near until they are full.
	const block = 64
	t := tile.For(kernels.F32)
	kernels.Parallel((m.Rows+block-1)/block, 1, func(lo, hi int) {
		for j0 := lo * block; j0 < min(hi*block, m.Rows); j0 += block {
			j1 := min(j0+block, m.Rows)
			for i0 := 0; i0 < j0; i0 += block {
				if t != nil && j1-j0 == block {
					for j := j0; j < j1; j += t.Lanes {
						t.Transpose(words.Of(&m.Data[i0*m.Stride+j]), 4*m.Stride, words.Of(&m.Data[j*m.Stride+i0]), 4*m.Stride,
							block/t.Lanes)
					}
					continue
				}
				mirrorBlock(m, j0, j1, i0, i0+block)
			}
			mirrorBlock(m, j0, j1, j0, j1)
		}
	})
}

// mirrorBlock copies what is below the diagonal in rows [j0,j1) and columns [i0,i1).
func mirrorBlock(m *tensor.Matrix, j0, j1, i0, i1 int) {
	for j := j0; j < j1; j++ {
		row := m.Row(j)
		for i := i0; i < min(i1, j); i++ {
			m.Data[i*m.Stride+j] = row[i]
		}
	}
}

// NN sets dst += alpha·A·B; A is m×k, B k×n, dst m×n.
func NN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, p kernels.Precision) {
	checkGemm(dst, a.Rows, a.Cols, b.Rows, b.Cols)
	t := tile.For(p)
	if t == nil {
		gemmNNGo(dst, alpha, a, b)
		return
	}
	left := tile.RowsOf(a)
	product(t, alpha, &left, a.Cols, add, result{c: dst, b: tile.ColsOf(b)})
}

// NNSplit is NN for columns [0,j0) and [j1,n) of B and of dst: A is packed once for both.
func NNSplit(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, j0, j1 int, p kernels.Precision) {
	checkGemm(dst, a.Rows, a.Cols, b.Rows, b.Cols)
	t := tile.For(p)
	var results []result
	for _, part := range [2][2]int{{0, j0}, {j1, b.Cols}} {
		if part[0] >= part[1] {
			continue
		}
		c, of := dst.View(0, dst.Rows, part[0], part[1]), b.View(0, b.Rows, part[0], part[1])
		if t == nil {
			gemmNNGo(c, alpha, a, of)
			continue
		}
		results = append(results, result{c: c, b: tile.ColsOf(of)})
	}
	if len(results) > 0 {
		left := tile.RowsOf(a)
		product(t, alpha, &left, a.Cols, add, results...)
	}
}

// SetNN sets dst = alpha·A·B, as NN adds it.
func SetNN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, p kernels.Precision) {
	checkGemm(dst, a.Rows, a.Cols, b.Rows, b.Cols)
	t := tile.For(p)
	if t == nil {
		dst.Zero()
		gemmNNGo(dst, alpha, a, b)
		return
	}
	left := tile.RowsOf(a)
	product(t, alpha, &left, a.Cols, store, result{c: dst, b: tile.ColsOf(b)})
}

// TN sets dst += alpha·Aᵀ·B; A is k×m, B k×n, dst m×n.
func TN(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, p kernels.Precision) {
	checkGemm(dst, a.Cols, a.Rows, b.Rows, b.Cols)
	t := tile.For(p)
	if t == nil {
		gemmTNGo(dst, alpha, a, b)
		return
	}
	productOfRows(t, dst, alpha, a, b, add)
}

// NT sets dst += alpha·A·Bᵀ; A is m×k, B n×k, dst m×n.
func NT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	gemmNT(dst, alpha, a, b, add)
}

// NTLower is NT for the part of dst on and below the diagonal; what is above becomes undefined.
func NTLower(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix) {
	gemmNT(dst, alpha, a, b, addLower)
}

func gemmNT(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, mode mode) {
	checkGemm(dst, a.Rows, a.Cols, b.Cols, b.Rows)
	t := tile.For(kernels.F32)
	if t == nil {
		gemmNTGo(dst, alpha, a, b, mode == addLower)
		return
	}
	left := tile.RowsOf(a)
	product(t, alpha, &left, a.Cols, mode, result{c: dst, b: tile.RowsOf(b)})
}

func checkGemm(dst *tensor.Matrix, m, k, k2, n int) {
	if dst.Rows != m || dst.Cols != n || k != k2 {
		panic("gemm: gemm shapes do not agree")
	}
}
