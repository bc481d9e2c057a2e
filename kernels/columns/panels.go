package columns

import (
	"github.com/llmq/llmq/internal/hugepages"
	"github.com/llmq/llmq/kernels"
)

const (
	panelRows    = 8
	panelColumns = 16
)

// panelWidths are those of the panels of 16 columns: six fill AVX2's registers with sums, and five hide a multiply-add's latency with
// something to spare, where four took a fifth more time for each.
var panelWidths = [...]int{6, 5, 5}

// Panels is a matrix U of Update's that many updates take parts of. AVX2 must broadcast an element to multiply it, a vector of columns
// being none of its operands: the elements of a panel follow each other, row by row, so that the cache's lines come one after the other,
// where those of a matrix are a line for each row and a page for each second.
type Panels struct {
	u          []float32
	pitch      int
	rows, cols int
	packed     []float32 // nil: updates take u as it is
}

// NewPanels keeps u, rows×cols with pitch elements from row to row, which must not change.
func NewPanels(u []float32, pitch, rows, cols int) *Panels {
	p := &Panels{u: u, pitch: pitch, rows: rows, cols: cols}
	if kernels.CurrentTier().Lanes() != 8 || rows%panelRows > 0 || cols%panelColumns > 0 {
		return p
	}
	p.packed = hugepages.Make[float32](rows * cols)
	to := p.packed
	for j := 0; j < cols; {
		for _, width := range panelWidths {
			for i := range rows {
				copy(to[:width], u[i*pitch+j:])
				to = to[width:]
			}
			j += width
		}
	}
	return p
}

// Update sets dst[j] += Σ U[row+k][col+j]·x[k] over the k of x, in their order; with down eight at a time, in the order of the rows,
// the last eight first.
func (p *Panels) Update(dst []kernels.Lane, row, col int, x []kernels.Lane, down bool) {
	if len(dst) == 0 || len(x) == 0 {
		return
	}
	if p.packed != nil && (row|len(x))%panelRows == 0 && (col|len(dst))%panelColumns == 0 && kernels.CurrentTier().Lanes() == 8 {
		if row+len(x) > p.rows || col+len(dst) > p.cols {
			panic("columns: an update reaches beyond the matrix")
		}
		updatePanels(dst, p.packed[col*p.rows:], p.rows, row, x, down)
		return
	}
	u := p.u[row*p.pitch+col:]
	if !down {
		Update(dst, u, p.pitch, x)
		return
	}
	for end := len(x); end > 0; end -= panelRows {
		k := max(0, end-panelRows)
		Update(dst, u[k*p.pitch:], p.pitch, x[k:end])
	}
}
