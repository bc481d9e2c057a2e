package gemm

import (
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/internal/tile"
	"github.com/llmq/llmq/kernels/internal/words"
	"github.com/llmq/llmq/tensor"
)

const (
	// pairedRows is how many rows are made pairs at a time: a block of steps.
	pairedRows = 2 * 512
	// widestStrip is the widest strip of the tiers that have pairs.
	widestStrip = 32
)

// productOfRows sets dst += alpha·Aᵀ·B, or with addLower its lower triangle; A is k×m, B k×n.
//
// In bfloat16 two rows become one of words, which hold both values of a column, and which are then packed as float32
// values are: a product over rows needs no transposition.
func productOfRows(t *tile.Tiling, dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, mode mode) {
	productOfRowsOn(kernels.Processors(), t, dst, alpha, a, b, mode)
}

// productOfRowsOn is productOfRows on up to the given number of goroutines.
func productOfRowsOn(workers int, t *tile.Tiling, dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, mode mode) {
	if !t.Pairs {
		left := tile.ColsOf(a)
		productOn(workers, t, alpha, &left, a.Rows, mode, result{c: dst, b: tile.ColsOf(b)})
		return
	}
	paired := *t
	paired.Pairs, paired.CopyStrip = false, t.CopyWords
	n, cols := (min(pairedRows, a.Rows)+1)/2, a.Cols
	if b != a {
		cols += b.Cols
	}
	buf := words.Get(n * cols)
	defer words.Put(buf)
	for r0 := 0; r0 < a.Rows; r0 += pairedRows {
		r1 := min(r0+pairedRows, a.Rows)
		pa := pairRows(workers, t, buf[:n*a.Cols], a.View(r0, r1, 0, a.Cols))
		pb := pa
		if b != a {
			pb = pairRows(workers, t, buf[n*a.Cols:], b.View(r0, r1, 0, b.Cols))
		}
		left := tile.ColsOf(pa)
		productOn(workers, &paired, alpha, &left, pa.Rows, mode, result{c: dst, b: tile.ColsOf(pb)})
	}
}

// pairRows returns rows 2i and 2i+1 of m, rounded to bfloat16, as row i of words in buf; a last row that is alone has
// zeros beside it. They are not float32 values: they may only be copied.
func pairRows(workers int, t *tile.Tiling, buf []uint32, m *tensor.Matrix) *tensor.Matrix {
	n := (m.Rows + 1) / 2
	p := tensor.FromSlice(n, m.Cols, words.Floats(buf[:n*m.Cols]))
	width := t.Strip()
	whole := m.Cols / width * width
	const grain = 8
	kernels.Spread((n+grain-1)/grain, workers, func(part int) {
		for i := part * grain; i < min((part+1)*grain, n); i++ {
			from := 0
			if 2*i+1 < m.Rows {
				for ; from < whole; from += width {
					t.CopyStrip(words.Of(&p.Data[i*p.Stride+from]), words.Of(&m.Data[2*i*m.Stride+from]), 4*m.Stride, 1)
				}
			}
			for ; from < m.Cols; from += width {
				var strip [widestStrip]uint32
				to := min(from+width, m.Cols)
				t.PackPairs(m.View(2*i, min(2*i+2, m.Rows), from, to), strip[:])
				copy(p.Row(i)[from:to], words.Floats(strip[:]))
			}
		}
	})
	return p
}
