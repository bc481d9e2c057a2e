package kernels

import "github.com/llmq/llmq/tensor"

const (
	// pairedRows is how many rows are made pairs at a time: a block of steps.
	pairedRows = 2 * 512
	// pairedStrip is the strip of every tier that has pairs.
	pairedStrip = 32
)

// productOfRows sets dst += alpha·Aᵀ·B, or with addLower its lower triangle; A is k×m, B k×n.
//
// In bfloat16 two rows become one of words, which hold both values of a column, and which are then packed as float32
// values are: a product over rows needs no transposition.
func (t *tiling) productOfRows(dst *tensor.Matrix, alpha float32, a, b *tensor.Matrix, mode mode) {
	if !t.pairs {
		left := colsOperand(a)
		t.product(alpha, &left, a.Rows, mode, result{dst, colsOperand(b)})
		return
	}
	paired := *t
	paired.pairs, paired.copyStrip = false, t.copyWords
	n, cols := (min(pairedRows, a.Rows)+1)/2, a.Cols
	if b != a {
		cols += b.Cols
	}
	buf := words.get(n * cols)
	defer words.put(buf)
	for r0 := 0; r0 < a.Rows; r0 += pairedRows {
		r1 := min(r0+pairedRows, a.Rows)
		pa := t.pairRows(buf[:n*a.Cols], a.View(r0, r1, 0, a.Cols))
		pb := pa
		if b != a {
			pb = t.pairRows(buf[n*a.Cols:], b.View(r0, r1, 0, b.Cols))
		}
		left := colsOperand(pa)
		paired.product(alpha, &left, pa.Rows, mode, result{dst, colsOperand(pb)})
	}
}

// pairRows returns rows 2i and 2i+1 of m, rounded to bfloat16, as row i of words in buf; a last row that is alone has
// zeros beside it. They are not float32 values: they may only be copied.
func (t *tiling) pairRows(buf []uint32, m *tensor.Matrix) *tensor.Matrix {
	n := (m.Rows + 1) / 2
	p := tensor.FromSlice(n, m.Cols, floats(buf))
	whole := m.Cols / pairedStrip * pairedStrip
	Parallel(n, 8, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			from := 0
			if 2*i+1 < m.Rows {
				for ; from < whole; from += pairedStrip {
					t.copyStrip(word(&p.Data[i*p.Stride+from]), word(&m.Data[2*i*m.Stride+from]), 4*m.Stride, 1)
				}
			}
			for ; from < m.Cols; from += pairedStrip {
				var strip [pairedStrip]uint32
				to := min(from+pairedStrip, m.Cols)
				t.packPairs(m.View(2*i, min(2*i+2, m.Rows), from, to), strip[:])
				copy(p.Row(i)[from:to], floats(strip[:]))
			}
		}
	})
	return p
}
