package pipeline

import (
	"bufio"
	"encoding/gob"
	"fmt"
	"io"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// statsValue begins a value of quant.Stats. H's lower triangle follows, row by row, then Drift and Shortfall, of so many rows,
// 0 where there is none; all in the byte order of the machine, which the workers of a run have in common, as they have a tier.
type statsValue struct {
	Tokens, In, Drift, Shortfall int
	Sum, DriftSum, ShortfallSum  []float64
}

func saveStats(w io.Writer, s *quant.Stats) error {
	v := statsValue{Tokens: s.Tokens, In: s.H.Rows, Sum: s.Sum, DriftSum: s.DriftSum, ShortfallSum: s.ShortfallSum}
	if s.Drift != nil {
		v.Drift = s.Drift.Rows
	}
	if s.Shortfall != nil {
		v.Shortfall = s.Shortfall.Rows
	}
	if err := gob.NewEncoder(w).Encode(&v); err != nil {
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

// loadStats reads statistics of inputs with in features, and of out outputs where they have a Shortfall.
func loadStats(values store.Store, name string, in, out int) (*quant.Stats, error) {
	f, err := values.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<16) // gob reads no further than it must from what can read single bytes
	var v statsValue
	if err := gob.NewDecoder(r).Decode(&v); err != nil {
		return nil, fmt.Errorf("the work folder: %s: %w", name, err)
	}
	if v.In != in || v.Drift != 0 && v.Drift != in || v.Shortfall != 0 && v.Shortfall != out {
		return nil, fmt.Errorf("the work folder: %s: statistics of %d inputs, %d and %d, of a site with %d inputs and %d outputs", name, v.In,
			v.Drift, v.Shortfall, in, out)
	}
	s := quant.NewStats(in)
	s.Tokens, s.Sum, s.DriftSum, s.ShortfallSum = v.Tokens, v.Sum, v.DriftSum, v.ShortfallSum
	read := func(row []float32) {
		if err == nil {
			_, err = io.ReadFull(r, raw(row))
		}
	}
	for i := range in {
		read(s.H.Row(i)[:i+1])
	}
	const tile = 64 // of the transpose: rows of H do not fit the cache
	for i0 := 0; i0 < in; i0 += tile {
		for j0 := 0; j0 <= i0; j0 += tile {
			for i := i0; i < min(i0+tile, in); i++ {
				for j, x := range s.H.Row(i)[j0:max(j0, min(j0+tile, i))] {
					s.H.Row(j0 + j)[i] = x
				}
			}
		}
	}
	if v.Drift > 0 {
		s.Drift = tensor.New(v.Drift, in)
	}
	if v.Shortfall > 0 {
		s.Shortfall = tensor.New(v.Shortfall, in)
	}
	for _, m := range []*tensor.Matrix{s.Drift, s.Shortfall} {
		if m == nil {
			continue
		}
		for i := range m.Rows {
			read(m.Row(i))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the work folder: %s: %w", name, err)
	}
	return s, nil
}
