package pipeline

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"

	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// statsPart is one of so many parts of statistics, as workers add them.
type statsPart struct{ part, parts int }

// mostStatsParts is the most parts: as many as there are machines that one file server does for.
const mostStatsParts = 16

// statsPartFeatures: statistics of so many features are one part. Tests take fewer.
var statsPartFeatures = 1449 // 16 MB of H and Drift: a site of 2048 is two parts already

// statsParts is how many parts statistics of inputs with in features have: of about the same size each.
func statsParts(in int) int {
	area := statsPartFeatures * statsPartFeatures
	return min((in*in+area-1)/area, mostStatsParts)
}

// statsHeader begins a part of quant.Stats. Its share of H's lower triangle, of Drift and of Shortfall follows, row by row; all in the
// byte order of the machine, which the workers of a run have in common, as they have a tier.
type statsHeader struct {
	Part, Parts          int
	Tokens               int
	In, Drift, Shortfall int // rows of H, and of the others, 0 where there is none

	Sum, DriftSum, ShortfallSum []float64 // of the first part
	Before                      []string  // in the last part of what is observed, the digests of the parts before it
}

// rows calls do for every row of the part, of n values: the matrix is 0 for H, 1 for Drift and 2 for Shortfall.
func (h *statsHeader) rows(do func(matrix, row, n int) error) error {
	in, parts := int64(h.In), int64(h.Parts)
	total := in*(in+1)/2 + in*int64(h.Drift+h.Shortfall) // values
	lo, hi := total*int64(h.Part)/parts, total*int64(h.Part+1)/parts
	at := int64(0)
	for matrix, rows := range [3]int{h.In, h.Drift, h.Shortfall} {
		for row := range rows {
			n := h.In
			if matrix == 0 {
				n = row + 1
			}
			if lo <= at && at < hi {
				if err := do(matrix, row, n); err != nil {
					return err
				}
			}
			at += int64(n)
		}
	}
	return nil
}

// matrices are those of statistics, in the order of statsHeader.rows.
func matrices(s *quant.Stats) [3]*tensor.Matrix { return [3]*tensor.Matrix{s.H, s.Drift, s.Shortfall} }

// saveStats writes a part of statistics. before are the digests of those before it, where they are to be known.
func saveStats(w io.Writer, s *quant.Stats, part statsPart, before []string) error {
	h := part.header(s)
	h.Before = before
	if err := gob.NewEncoder(w).Encode(&h); err != nil {
		return err
	}
	of := matrices(s)
	return h.rows(func(matrix, row, n int) error {
		_, err := w.Write(raw(of[matrix].Row(row)[:n]))
		return err
	})
}

// header is that of a part of statistics.
func (part statsPart) header(s *quant.Stats) statsHeader {
	h := statsHeader{Part: part.part, Parts: part.parts, Tokens: s.Tokens, In: s.H.Rows}
	if s.Drift != nil {
		h.Drift = s.Drift.Rows
	}
	if s.Shortfall != nil {
		h.Shortfall = s.Shortfall.Rows
	}
	if part.part == 0 {
		h.Sum, h.DriftSum, h.ShortfallSum = s.Sum, s.DriftSum, s.ShortfallSum
	}
	return h
}

// statsReader reads a part of statistics: its rows in order.
type statsReader struct {
	statsHeader
	name string
	r    *bufio.Reader
	io.Closer
	made *quant.Stats // in this process: nothing is read
}

// openStats opens a part of statistics of inputs with in features, and of out outputs where they have a Shortfall.
func openStats(values store.Store, name string, part statsPart, in, out int) (*statsReader, error) {
	f, err := values.Open(name)
	if err != nil {
		return nil, err
	}
	r := &statsReader{name: name, r: bufio.NewReaderSize(f, 1<<16), Closer: f} // gob reads no further than it must from what can read single bytes
	err = gob.NewDecoder(r.r).Decode(&r.statsHeader)
	switch {
	case err != nil:
	case r.In != in || r.Drift != 0 && r.Drift != in || r.Shortfall != 0 && r.Shortfall != out:
		err = fmt.Errorf("statistics of %d inputs, %d and %d, of a site with %d inputs and %d outputs", r.In, r.Drift, r.Shortfall, in, out)
	case r.Part != part.part || r.Parts != part.parts:
		err = fmt.Errorf("part %d of %d of statistics, where %d of %d is to be", r.Part, r.Parts, part.part, part.parts)
	}
	if err != nil {
		return nil, errors.Join(r.failed(err), f.Close())
	}
	return r, nil
}

// openMade is openStats of statistics that may be in this process: made, if that is not nil.
func openMade(values store.Store, made *quant.Stats, name string, part statsPart, in, out int) (*statsReader, error) {
	if made == nil {
		return openStats(values, name, part, in, out)
	}
	return &statsReader{statsHeader: part.header(made), name: name, made: made}, nil
}

func (r *statsReader) failed(err error) error {
	if r.name == "" { // it is no value
		return err
	}
	return fmt.Errorf("the work folder: %s: %w", r.name, err)
}

// row returns the next row, which is that of a matrix: into dst it is read, if it is not in memory already.
func (r *statsReader) row(matrix, row int, dst []float32) ([]float32, error) {
	if r.made != nil {
		return matrices(r.made)[matrix].Row(row)[:len(dst)], nil
	}
	if _, err := io.ReadFull(r.r, raw(dst)); err != nil {
		return nil, r.failed(err)
	}
	return dst, nil
}

// addTo adds a part of statistics to others of the same kind, on and below the diagonal of H.
func (r *statsReader) addTo(s *quant.Stats) error {
	of := matrices(s)
	for i, rows := range [3]int{r.In, r.Drift, r.Shortfall} {
		if have := of[i]; (have == nil) != (rows == 0) || have != nil && have.Rows != rows {
			return r.failed(errors.New("statistics of something else than those that they are to be added to"))
		}
	}
	if r.Part == 0 {
		s.Add(&quant.Stats{Tokens: r.Tokens, Sum: r.Sum, DriftSum: r.DriftSum, ShortfallSum: r.ShortfallSum})
	}
	term := make([]float32, r.In)
	return r.rows(func(matrix, row, n int) error {
		x, err := r.row(matrix, row, term[:n])
		if err == nil {
			vector.Axpy(of[matrix].Row(row)[:n], 1, x)
		}
		return err
	})
}

// addPart adds a part of statistics, a value, to others of the same kind: see statsReader.addTo.
func addPart(s *quant.Stats, values store.Store, name string, part statsPart, in, out int) error {
	r, err := openStats(values, name, part, in, out)
	if err != nil {
		return err
	}
	return errors.Join(r.addTo(s), r.Close())
}

// Close implements io.Closer.
func (r *statsReader) Close() error {
	if r.made != nil {
		return nil
	}
	return r.Closer.Close()
}

// partialStats are statistics of which some parts are there.
type partialStats struct {
	*quant.Stats
	there map[int]*statsHeader
}

// newPartialStats returns statistics of inputs with in features of which no part is there.
func newPartialStats(in int) *partialStats {
	return &partialStats{quant.NewStats(in), map[int]*statsHeader{}}
}

// prepare makes room for the rows of a part like h.
func (s *partialStats) prepare(h *statsHeader) {
	if h.Drift > 0 && s.Drift == nil {
		s.Drift = tensor.New(h.Drift, h.In)
	}
	if h.Shortfall > 0 && s.Shortfall == nil {
		s.Shortfall = tensor.New(h.Shortfall, h.In)
	}
}

// add notes a part whose rows are there.
func (s *partialStats) add(h *statsHeader) {
	if h.Part == 0 {
		s.Tokens, s.Sum, s.DriftSum, s.ShortfallSum = h.Tokens, h.Sum, h.DriftSum, h.ShortfallSum
	}
	s.there[h.Part] = h
}

// complete reads the parts that are missing: names are those of all parts, of statistics of inputs with in features, and of out
// outputs where they have a Shortfall.
func (s *partialStats) complete(values store.Store, names []string, in, out int) error {
	for i, name := range names {
		if s.there[i] != nil {
			continue
		}
		r, err := openStats(values, name, statsPart{i, len(names)}, in, out)
		if err != nil {
			return err
		}
		defer r.Close()
		for _, other := range s.there {
			if r.Tokens != other.Tokens || r.Drift != other.Drift || r.Shortfall != other.Shortfall {
				return r.failed(errors.New("statistics of something else than the parts before it"))
			}
		}
		s.prepare(&r.statsHeader)
		of := matrices(s.Stats)
		err = r.rows(func(matrix, row, n int) error {
			_, err := r.row(matrix, row, of[matrix].Row(row)[:n])
			return err
		})
		if err != nil {
			return err
		}
		s.add(&r.statsHeader)
	}
	gemm.Mirror(s.H)
	return nil
}

// statsTree is statistics that are added: a part of those of some shards, or the sum of others in their order.
type statsTree struct {
	r    *statsReader
	of   []*statsTree
	term []float32 // room for a row of one of them
}

// leaves calls do for what the tree is the sum of, in order.
func (t *statsTree) leaves(do func(r *statsReader) error) error {
	if t.r != nil {
		return do(t.r)
	}
	for _, child := range t.of {
		if err := child.leaves(do); err != nil {
			return err
		}
	}
	return nil
}

func (t *statsTree) close() error { return t.leaves((*statsReader).Close) }

// values returns the sum of what is not in rows.
func (t *statsTree) values() *quant.Stats {
	if t.r != nil {
		return &quant.Stats{Tokens: t.r.Tokens, Sum: t.r.Sum, DriftSum: t.r.DriftSum, ShortfallSum: t.r.ShortfallSum}
	}
	var sum quant.Stats
	for _, child := range t.of {
		sum.Add(child.values())
	}
	return &sum
}

// row returns the sum of the next rows, those of a matrix, which may be in dst or in memory already.
func (t *statsTree) row(matrix, row int, dst []float32) ([]float32, error) {
	if t.r != nil {
		return t.r.row(matrix, row, dst)
	}
	x, err := t.of[0].row(matrix, row, dst)
	if err != nil || len(t.of) == 1 {
		return x, err
	}
	copy(dst, x) // nothing, if it is there
	for _, child := range t.of[1:] {
		if t.term == nil {
			t.term = make([]float32, t.in())
		}
		x, err := child.row(matrix, row, t.term[:len(dst)])
		if err != nil {
			return nil, err
		}
		vector.Axpy(dst, 1, x)
	}
	return dst, nil
}

// in is the number of inputs.
func (t *statsTree) in() int {
	for t.r == nil {
		t = t.of[0]
	}
	return t.r.In
}

// addStats writes a part of the sum of a tree's statistics, as quant.Stats.Add adds them, but row by row: they are large. The sum goes to keep as
// well, if that is not nil. It returns what the part has of quant.Stats.Importance of the sum; the rest is 0.
func addStats(w io.Writer, t *statsTree, keep *partialStats, part statsPart, in int) (importance []float32, err error) {
	var h *statsHeader
	err = t.leaves(func(r *statsReader) error {
		if h == nil {
			h = &statsHeader{Part: part.part, Parts: part.parts, In: in, Drift: r.Drift, Shortfall: r.Shortfall}
		}
		if r.Drift != h.Drift || r.Shortfall != h.Shortfall {
			return r.failed(errors.New("statistics of something else than those of the other shards"))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	sum := t.values()
	h.Tokens, h.Sum, h.DriftSum, h.ShortfallSum = sum.Tokens, sum.Sum, sum.DriftSum, sum.ShortfallSum
	if err := gob.NewEncoder(w).Encode(h); err != nil {
		return nil, err
	}
	if keep != nil {
		keep.prepare(h)
	}
	importance = make([]float32, in)
	room := make([]float32, in)
	err = h.rows(func(matrix, row, n int) error {
		total, err := t.row(matrix, row, room[:n])
		if err != nil {
			return err
		}
		if keep != nil {
			copy(matrices(keep.Stats)[matrix].Row(row), total)
		}
		if matrix == 0 {
			importance[row] = total[row] / float32(max(h.Tokens, 1))
		}
		_, err = w.Write(raw(total))
		return err
	})
	if err == nil && keep != nil {
		keep.add(h)
	}
	return importance, err
}
