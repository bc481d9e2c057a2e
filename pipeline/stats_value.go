package pipeline

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// statsHeader begins a value of quant.Stats. H's lower triangle follows, row by row, then Drift and Shortfall, of so many rows,
// 0 where there is none; all in the byte order of the machine, which the workers of a run have in common, as they have a tier.
type statsHeader struct {
	Tokens, In, Drift, Shortfall int
	Sum, DriftSum, ShortfallSum  []float64
}

// rows are those of H, of Drift and of Shortfall.
func (h *statsHeader) rows() [3]int { return [3]int{h.In, h.Drift, h.Shortfall} }

func saveStats(w io.Writer, s *quant.Stats) error {
	h := statsHeader{Tokens: s.Tokens, In: s.H.Rows, Sum: s.Sum, DriftSum: s.DriftSum, ShortfallSum: s.ShortfallSum}
	if s.Drift != nil {
		h.Drift = s.Drift.Rows
	}
	if s.Shortfall != nil {
		h.Shortfall = s.Shortfall.Rows
	}
	if err := gob.NewEncoder(w).Encode(&h); err != nil {
		return err
	}
	for i := range s.H.Rows {
		if _, err := w.Write(raw(s.H.Row(i)[:i+1])); err != nil {
			return err
		}
	}
	for _, m := range []*tensor.Matrix{s.Drift, s.Shortfall} {
		if m == nil {
			continue
		}
		for i := range m.Rows {
			if _, err := w.Write(raw(m.Row(i))); err != nil {
				return err
			}
		}
	}
	return nil
}

// statsReader reads a value of quant.Stats.
type statsReader struct {
	statsHeader
	name string
	r    *bufio.Reader
	io.Closer
}

// openStats opens statistics of inputs with in features, and of out outputs where they have a Shortfall.
func openStats(values store.Store, name string, in, out int) (*statsReader, error) {
	f, err := values.Open(name)
	if err != nil {
		return nil, err
	}
	r := &statsReader{name: name, r: bufio.NewReaderSize(f, 1<<16), Closer: f} // gob reads no further than it must from what can read single bytes
	err = gob.NewDecoder(r.r).Decode(&r.statsHeader)
	if err == nil && (r.In != in || r.Drift != 0 && r.Drift != in || r.Shortfall != 0 && r.Shortfall != out) {
		err = fmt.Errorf("statistics of %d inputs, %d and %d, of a site with %d inputs and %d outputs", r.In, r.Drift, r.Shortfall, in, out)
	}
	if err != nil {
		return nil, errors.Join(r.failed(err), f.Close())
	}
	return r, nil
}

func (r *statsReader) failed(err error) error {
	return fmt.Errorf("the work folder: %s: %w", r.name, err)
}

// row reads the next row.
func (r *statsReader) row(dst []float32) error {
	if _, err := io.ReadFull(r.r, raw(dst)); err != nil {
		return r.failed(err)
	}
	return nil
}

// loadStats reads statistics of inputs with in features, and of out outputs where they have a Shortfall.
func loadStats(values store.Store, name string, in, out int) (*quant.Stats, error) {
	r, err := openStats(values, name, in, out)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	s := quant.NewStats(in)
	s.Tokens, s.Sum, s.DriftSum, s.ShortfallSum = r.Tokens, r.Sum, r.DriftSum, r.ShortfallSum
	for i := range in {
		if err := r.row(s.H.Row(i)[:i+1]); err != nil {
			return nil, err
		}
	}
	mirror(s.H)
	if r.Drift > 0 {
		s.Drift = tensor.New(r.Drift, in)
	}
	if r.Shortfall > 0 {
		s.Shortfall = tensor.New(r.Shortfall, in)
	}
	for _, m := range []*tensor.Matrix{s.Drift, s.Shortfall} {
		if m == nil {
			continue
		}
		for i := range m.Rows {
			if err := r.row(m.Row(i)); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// mirror copies the lower triangle of a square matrix to the upper one.
func mirror(m *tensor.Matrix) {
	const tile = 64 // rows and columns that are turned in the cache: rows of m, which are a power of two apart, do not fit it
	n := m.Rows
	kernels.Parallel((n+tile-1)/tile, 1, func(lo, hi int) {
		var turned [tile][tile]float32
		for j0 := lo * tile; j0 < hi*tile; j0 += tile {
			for i0 := j0; i0 < n; i0 += tile {
				rows, cols := min(tile, n-i0), min(tile, n-j0)
				for i := range rows {
					for j, x := range m.Row(i0 + i)[j0 : j0+cols] {
						turned[j][i] = x
					}
				}
				for j := range cols {
					from := 0
					if i0 == j0 {
						from = j + 1 // of the tile on the diagonal, the half above it
					}
					if from < rows {
						copy(m.Row(j0 + j)[i0+from:i0+rows], turned[j][from:rows])
					}
				}
			}
		}
	})
}

// addStats writes the sum of statistics, which are added in their order, as quant.Stats.Add does, but row by row: they are large.
// It returns quant.Stats.Importance of the sum.
func addStats(w io.Writer, values store.Store, names []string, in, out int) (importance []float32, err error) {
	parts := make([]*statsReader, len(names))
	for i, name := range names {
		if parts[i], err = openStats(values, name, in, out); err != nil {
			return nil, err
		}
		defer parts[i].Close()
	}
	var sum quant.Stats // of what is not in rows
	h := statsHeader{In: in}
	for i, p := range parts {
		o := quant.Stats{Tokens: p.Tokens, Sum: p.Sum, DriftSum: p.DriftSum, ShortfallSum: p.ShortfallSum}
		if i == 0 {
			sum = o
		} else {
			sum.Add(&o)
		}
		h.Drift, h.Shortfall = max(h.Drift, p.Drift), max(h.Shortfall, p.Shortfall)
	}
	h.Tokens, h.Sum, h.DriftSum, h.ShortfallSum = sum.Tokens, sum.Sum, sum.DriftSum, sum.ShortfallSum
	if err := gob.NewEncoder(w).Encode(&h); err != nil {
		return nil, err
	}
	total, part := make([]float32, in), make([]float32, in)
	for m, rows := range h.rows() {
		for i := range rows {
			n := in
			if m == 0 {
				n = i + 1 // H's lower triangle
			}
			clear(total)
			for k, p := range parts {
				if p.rows()[m] == 0 {
					continue
				}
				if k == 0 {
					err = p.row(total[:n])
				} else if err = p.row(part[:n]); err == nil {
					vector.Axpy(total[:n], 1, part[:n])
				}
				if err != nil {
					return nil, err
				}
			}
			if m == 0 {
				importance = append(importance, total[i]/float32(max(h.Tokens, 1)))
			}
			if _, err := w.Write(raw(total[:n])); err != nil {
				return nil, err
			}
		}
	}
	return importance, nil
}
