package gptq

import (
	"context"
	"sync"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/quant"
)

// Method is GPTQ as a quant.Method: a weight is corrected for the errors of everything before it, as far as the Stats tell
// of them, and then quantized.
type Method struct{ Options Options }

// Name returns "gptq".
func (Method) Name() string { return "gptq" }

// Needs are the inputs' Hessian and what the original model has in the inputs' place.
func (Method) Needs() quant.Needs { return quant.Needs{Stats: true, Original: true, Outputs: true} }

// Memory counts the factor and its windows of the Hessian, and of all rows the weights, the corrected and the decoded ones, codes and
// what they are packed into, and the two matrices that the bands which are worked on have.
func (Method) Memory(out, in int) int64 {
	return factorMemory(in) + weightMemory(2, out, in) + bandMemory(out, in)
}

// CoupledMemory is what Method takes for so many coupled rows beside their H_O and the factor that serves all: the rows' weights, the
// corrected ones, errors and codes, what bands have, the factor of H_O and half of another.
func CoupledMemory(rows, in int) int64 {
	return weightMemory(2, rows, in) + bandMemory(min(rows, bandRows), in) + 6*int64(rows)*int64(rows)
}

// factorMemory is the size of a Factor, its windows included, which AVX2 has in panels too, as it has the factor's own. Blocks of more than
// refineColumns columns, which only formats for servers have, take more: their windows are as wide as they are.
func factorMemory(in int) int64 {
	windows := 1
	if kernels.CurrentTier().Lanes() == 8 {
		windows = 3
	}
	return 4 * int64(in) * int64(in+windows*min(in, refineColumns))
}

// weightMemory is the size of so many rows, of as many more matrices of them, and of codes and packed codes.
func weightMemory(more, rows, in int) int64 {
	const codes = 2 // bytes: a code, shares of scales, and packed half as much
	return int64(rows) * int64(in) * int64(4*(1+more)+codes)
}

// bandMemory is what bands of so many rows have borrowed at a time.
func bandMemory(rows, in int) int64 {
	return 4 * 2 * int64(in) * int64(min(rows, kernels.Processors()*bandRows))
}

// Open returns a solver that makes one Factor for all grids whose columns come in the same order.
func (m Method) Open(in *quant.Stats) quant.Solver {
	return &solver{opt: m.Options, in: in, factors: map[order]*Factor{}}
}

// order is what a grid asks of the order of columns.
type order struct{ block, unit int }

type solver struct {
	opt Options
	in  *quant.Stats

	mu      sync.Mutex
	factors map[order]*Factor
}

func (s *solver) Quantize(ctx context.Context, j quant.Job) (quant.Result, error) {
	f, err := s.factor(ctx, j.Grid)
	if err != nil {
		return quant.Result{}, err
	}
	if j.Last {
		s.factors = nil // f goes when it has served
	}
	damping := f.Damping
	target := f.correct(j.W, s.in.ForRows(j.First, j.First+j.W.Rows), j.Takes)
	var w *quant.Weight
	if j.Outputs == nil {
		w, err = f.Quantize(ctx, target, j.Grid)
	} else {
		w, err = f.QuantizeCoupled(ctx, target, j.Grid, j.Outputs)
	}
	return quant.Result{Weight: w, Target: target, Damping: damping}, err
}

// A CouplingSolver is what Method.Open returns.
type CouplingSolver interface {
	quant.Solver
	// Couple starts on a job of all rows of a linear, with one block of Outputs. It takes W, whose rows become targets.
	Couple(ctx context.Context, j quant.Job) (*Coupled, error)
}

func (s *solver) Couple(ctx context.Context, j quant.Job) (*Coupled, error) {
	f, err := s.factor(ctx, j.Grid)
	if err != nil {
		return nil, err
	}
	f.expectFewRows()
	c, err := newCoupled(j.W, j.Outputs[0])
	if err != nil {
		return nil, err
	}
	c.f, c.g, c.in, c.Damping = f, j.Grid, s.in, f.Damping
	c.correct = make([]bool, j.W.Rows)
	return c, nil
}

func (s *solver) factor(ctx context.Context, g quant.Grid) (*Factor, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := order{g.Shape().Block, unitOf(g)}
	if f := s.factors[key]; f != nil {
		return f, nil
	}
	f, err := NewFactor(ctx, s.in.H, g, s.opt)
	if err != nil {
		return nil, err
	}
	s.factors[key] = f
	return f, nil
}
