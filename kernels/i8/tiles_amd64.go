//go:build !purego

package i8

import (
	"unsafe"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/pack"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/tensor"
	"golang.org/x/sys/cpu"
)

// tileSide is how many rows of X, and of W, a kernel of AMX takes at a time.
const tileSide = 32

// tileTokens is how many rows of X several strips of W are multiplied with before the next ones are: they stay in L2.
const tileTokens = 128

// tileStrips is how many strips of tileSide rows of W are packed at a time.
const tileStrips = 4

// inTiles says whether AMX multiplies x and w. How many rows X has makes no difference where groups are added in another order than
// the vectors' kernels add them: a token's results do not depend on those beside it.
func inTiles(x, w *Matrix) bool {
	return kernels.CurrentTier() >= kernels.AMX && cpu.X86.HasAMXInt8 && w.Rows >= tileSide && x.Cols > 0 &&
		(x.Rows >= tileSide || x.Rows > 0 && w.groups() > 1)
}

// matMulTiles is MatMul by tiles: its results are productGo's.
func matMulTiles(dst *tensor.Matrix, x, w *Matrix) {
	if x.Rows < tileSide {
		whole, to := New(tileSide, x.Cols, x.Group), tensor.New(tileSide, w.Rows)
		copy(whole.data, x.data)
		copy(whole.Scale, x.Scale)
		matMulTiles(to, whole, w)
		for t := range x.Rows {
			copy(dst.Row(t), to.Row(t))
		}
		return
	}
	kernels.Parallel((w.Rows+tileSide-1)/tileSide, 1, func(lo, hi int) {
		for ; lo < hi; lo += tileStrips {
			tileColumns(dst, x, w, lo*tileSide, min(min(lo+tileStrips, hi)*tileSide, w.Rows))
		}
	})
}

// tileColumns computes columns [j0,j1) of dst, at most tileStrips strips.
func tileColumns(dst *tensor.Matrix, x, w *Matrix, j0, j1 int) {
	strips := (j1 - j0 + tileSide - 1) / tileSide
	steps := (w.stride + 63) / 64       // of 64 columns
	levels := steps * 64 / 4 * tileSide // words of a strip
	n := levels + w.groups()*tileSide   // with its scales
	buf := words.Get(strips*n + tileSide*tileSide)
	defer words.Put(buf)
	scratch := words.Floats(buf[strips*n:])
	// The last strip of W may begin before j0, as strips are whole.
	first := func(i int) int { return min(j0+i*tileSide, w.Rows-tileSide) }
	for i := range strips {
		packTile(buf[i*n:(i+1)*n], w, first(i), steps)
	}
	for t0 := 0; t0 < x.Rows; t0 += tileTokens {
		t1 := min(t0+tileTokens, x.Rows)
		for i := range strips {
			strip, j := buf[i*n:(i+1)*n], j0+i*tileSide
			cols := min(tileSide, j1-j)
			rest := t0
			if whole := (t1 - t0) / tileSide; whole > 0 && cols == tileSide {
				tileProduct(x, w, t0, whole, strip, levels, &dst.Data[t0*dst.Stride+j], dst.Stride)
				rest += whole * tileSide
			}
			for t := rest; t < t1; t += tileSide {
				from := min(t, x.Rows-tileSide) // panels are whole too
				tileProduct(x, w, from, 1, strip, levels, &scratch[0], tileSide)
				for y := t; y < min(t+tileSide, t1); y++ {
					copy(dst.Row(y)[j:j+cols], scratch[(y-from)*tileSide+j-first(i):])
				}
			}
		}
	}
}

// tileProduct computes panels of tileSide rows of x, from row t on, times a strip; c's rows are stride values apart.
func tileProduct(x, w *Matrix, t, panels int, strip []uint32, levels int, c *float32, stride int) {
	scales := &words.Floats(strip)[levels]
	if w.Group == w.Cols {
		int8RowsAMX(panels, (w.stride+63)/64, &x.data[t*x.stride], x.stride, &strip[0], scales, c, 4*stride, &x.Scale[t])
		return
	}
	int8GroupsAMX(2*panels, w.groups(), &x.data[t*x.stride], x.stride, &strip[0], scales, c, 4*stride, &x.Scale[t])
}

// packTile packs rows j to j+tileSide of w: four columns after four, the bytes of each row in a word, zeros after the last; and then,
// group after group, the scales of all rows.
func packTile(dst []uint32, w *Matrix, j, steps int) {
	for y := 0; y < tileSide; y += 16 {
		pack.TransposeAVX512(&dst[y], 4*tileSide, (*uint32)(unsafe.Pointer(&w.data[(j+y)*w.stride])), w.stride, steps)
	}
	// Where steps end after a row, the transpose has read on, and so will the kernel in X.
	clear(dst[w.stride/4*tileSide : steps*64/4*tileSide])
	scales := words.Floats(dst[steps*64/4*tileSide:])
	for y := range tileSide {
		for g, s := range w.Scales(j + y) {
			scales[g*tileSide+y] = s
		}
	}
}
