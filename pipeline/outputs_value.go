package pipeline

import (
	"bufio"
	"encoding/gob"
	"fmt"
	"io"
	"slices"

	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// verdicts are what there is to tell of a part's Hessians, whose lower triangles follow, of those that pay.
type verdicts struct {
	Of     []verdict // on each linear
	Opaque []string
}

// gradientSums begin a part's sums. Of each linear the lower triangles of its fit follow, then of its held, where there are such.
type gradientSums struct {
	Fit, Held []int    // tokens of each linear
	Opaque    []string // branches of the layer without a derivative
	Before    []string // in the last part of a batch or a half, the digests of the parts before it
}

// eachTriangle calls do for what rows of blocks have on and below the diagonal.
func eachTriangle(blocks []*tensor.Matrix, do func(row []float32) error) error {
	for _, h := range blocks {
		for i := range h.Rows {
			if err := do(h.Row(i)[:i+1]); err != nil {
				return err
			}
		}
	}
	return nil
}

func readRow(r io.Reader, row []float32) error {
	_, err := io.ReadFull(r, raw(row))
	return err
}

// saveSums writes the sums of a part's linears.
func saveSums(w io.Writer, linears []*model.Linear, sums map[string]*outputSums, opaque, before []string) error {
	h := gradientSums{Opaque: opaque, Before: before}
	for _, lin := range linears {
		s := sums[lin.ID()]
		h.Fit, h.Held = append(h.Fit, s.tokens), append(h.Held, s.heldTokens)
	}
	if err := gob.NewEncoder(w).Encode(&h); err != nil {
		return err
	}
	write := func(row []float32) error {
		_, err := w.Write(raw(row))
		return err
	}
	for j, lin := range linears {
		s := sums[lin.ID()]
		if h.Fit[j] > 0 {
			if err := eachTriangle(s.fit, write); err != nil {
				return err
			}
		}
		if h.Held[j] > 0 {
			if err := eachTriangle(s.held, write); err != nil {
				return err
			}
		}
	}
	return nil
}

// addValue is addSums of a value in a work folder.
func addValue(values store.Store, name string, linears []*model.Linear, sums map[string]*outputSums) (h gradientSums, err error) {
	f, err := values.Open(name)
	if err != nil {
		return h, err
	}
	defer f.Close()
	if h, err = addSums(f, linears, sums); err != nil {
		return h, fmt.Errorf("the work folder: %s: %w", name, err)
	}
	return h, nil
}

// addSums adds what saveSums has written of a part to its linears' sums, and returns what it begins with.
func addSums(from io.Reader, linears []*model.Linear, sums map[string]*outputSums) (h gradientSums, err error) {
	r := bufio.NewReaderSize(from, 1<<16) // gob reads no further than it must from what can read single bytes
	if err := gob.NewDecoder(r).Decode(&h); err != nil {
		return h, err
	}
	if n := len(linears); len(h.Fit) != n || len(h.Held) != n {
		return h, fmt.Errorf("sums of %d linears, where %d are to be", len(h.Fit), n)
	}
	var term []float32
	add := func(row []float32) error {
		term = slices.Grow(term[:0], len(row))[:len(row)]
		err := readRow(r, term)
		vector.Axpy(row, 1, term)
		return err
	}
	for j, lin := range linears {
		s := sums[lin.ID()]
		s.tokens += h.Fit[j]
		s.heldTokens += h.Held[j]
		if h.Fit[j] > 0 {
			err = eachTriangle(s.fit, add)
		}
		if h.Held[j] > 0 && err == nil {
			err = eachTriangle(s.held, add)
		}
		if err != nil {
			return h, err
		}
	}
	return h, nil
}
