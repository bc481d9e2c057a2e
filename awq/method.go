package awq

import (
	"context"

	"github.com/llmq/llmq/quant"
)

// Method is AWQ as a quant.Method: Scaling, then rounding to nearest with clipped groups. Linears whose outputs meet in a
// product, which clipping disturbs, are not clipped, as the authors do not.
type Method struct{}

// Name returns "awq".
func (Method) Name() string { return "awq" }

// Needs are the inputs' statistics and Scaling.
func (Method) Needs() quant.Needs {
	return quant.Needs{Stats: true, Transforms: []quant.Transform{Scaling{}}}
}

// Memory counts the weights, what they have lost and its gradient, codes and scales, and the changes of the columns that are searched
// together; decoded weights come when those have gone.
func (Method) Memory(out, in int) int64 {
	return (3*4+2)*int64(out)*int64(in) + 4*int64(out)*int64(min(in, 2*clipColumns))
}

// Open returns a solver that clips by the Hessian of the inputs.
func (Method) Open(in *quant.Stats) quant.Solver { return solver{in} }

type solver struct{ in *quant.Stats }

func (s solver) Quantize(ctx context.Context, j quant.Job) (quant.Result, error) {
	if j.Product {
		return quant.Nearest{}.Open(s.in).Quantize(ctx, j)
	}
	w, err := Quantize(ctx, j.W, s.in, j.Grid)
	return quant.Result{Weight: w, Target: j.W}, err
}
