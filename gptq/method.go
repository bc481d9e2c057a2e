package gptq

import (
	"context"
	"sync"

	"github.com/llmq/llmq/quant"
)

// Method is GPTQ as a quant.Method: a weight is corrected for the errors of everything before it, as far as the Stats tell
// of them, and then quantized.
type Method struct{ Options Options }

// Name returns "gptq".
func (Method) Name() string { return "gptq" }

// Needs are the inputs' Hessian and what the original model has in the inputs' place.
func (Method) Needs() quant.Needs { return quant.Needs{Stats: true, Original: true, Outputs: true} }

// Memory counts the factor, and of all rows the weights, the corrected and the decoded ones, codes, and what sweep and descent
// keep beside them: five values for a weight and its code, and what is garbage.
func (Method) Memory(out, in int) int64 {
	n := int64(in)
	return 4 * (n*n + 6*n*int64(out))
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
	target := f.Correct(j.W, s.in.ForRows(j.First, j.First+j.W.Rows))
	var w *quant.Weight
	if j.Outputs == nil {
		w, err = f.Quantize(ctx, target, j.Grid)
	} else {
		w, err = f.QuantizeCoupled(ctx, target, j.Grid, j.Outputs)
	}
	return quant.Result{Weight: w, Target: target, Damping: f.Damping}, err
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
