package quant

import (
	"context"

	"github.com/llmq/llmq/tensor"
)

// Method is a way to choose the weights of linears on their grids. It is a value: two that are equal do the same.
type Method interface {
	// Name is what options, reports and files call the method.
	Name() string
	// Needs says what whoever runs the method has to supply.
	Needs() Needs
	// Open starts on linears that share the inputs that in has seen. in must not change from then on, and its Shortfall is
	// the solver's where a Job says so. It is nil where nothing was calibrated, which Needs must allow.
	Open(in *Stats) Solver
	// Memory returns how many bytes a Solver takes for linears of together out outputs and in inputs, with the weights
	// that it is given and returns, and without the Stats.
	Memory(out, in int) int64
}

// Needs is what a method asks for. The zero value is a method that goes by the weights alone.
type Needs struct {
	// Stats: the inputs of the linears are observed, which takes calibration text.
	Stats bool
	// Original: Stats hold what the original model has in the inputs' place too, if that is not turned off.
	Original bool
	// Transforms scale each site before its linears are quantized.
	Transforms []Transform
	// Trials: the method is tried on some rows of a site, with the Transforms as they are found and weaker ones. The
	// inputs that judge the trials are kept out of their Stats.
	Trials bool
	// Decides: the method decides for each site how it is quantized, and gives a type of more bits to linears that cost too
	// much for a limit. Trials is set too.
	Decides bool
	// Outputs: the method goes by Job.Outputs.
	Outputs bool
	// Int8Inputs: the model is to run with inputs of eight bits. Its weights have eight bits too, and the ranges of the
	// inputs are stored beside them.
	Int8Inputs bool
}

// Solver quantizes linears that share their inputs. It may be used by several goroutines at once; what the linears have
// in common is computed once.
type Solver interface {
	Quantize(ctx context.Context, j Job) (Result, error)
}

// Job is rows of a linear to be quantized. Rows depend on each other through Outputs alone.
type Job struct {
	W    *tensor.Matrix // rows×in; it is not changed, unless the solver Takes it
	Grid Grid
	// First is the row of the linear that W's first is: its Stats' Shortfall has all.
	First int
	// Product: the outputs are multiplied with those of another linear, as queries are with keys.
	Product bool
	// Outputs, where not nil, tell how much errors of the outputs matter to the model's predictions, and together: Σ ggᵀ, g being
	// gradients of log-probabilities at the outputs. They are blocks on the diagonal, of consecutive rows, W's all together; what
	// is outside the blocks is not known. A method may leave them out of account.
	Outputs []*tensor.Matrix
	// Takes: nobody else wants what the Stats' Shortfall has of these rows. The solver may keep what it makes of them there, and give up W,
	// which has no Data then.
	Takes bool
	// Last: no other job of the solver follows, or runs beside this one. It may give up what it knows of the inputs.
	Last bool
}

// Result is what became of a Job.
type Result struct {
	Weight *Weight
	Target *tensor.Matrix // what was rounded: the job's W, or W corrected for the errors of what comes before it
	// Damping is the share of the mean Hessian diagonal that was added to it; 0 where no Hessian was inverted.
	Damping float64
}

// Nearest is the method that rounds to nearest, with scales searched by the importance of the inputs if they are known.
type Nearest struct {
	// Int8Inputs: see Needs.
	Int8Inputs bool
}

// Name returns "rtn", or "int8" for inputs of eight bits.
func (m Nearest) Name() string {
	if m.Int8Inputs {
		return "int8"
	}
	return "rtn"
}

// Needs is empty but for inputs of eight bits, whose ranges must be observed.
func (m Nearest) Needs() Needs { return Needs{Stats: m.Int8Inputs, Int8Inputs: m.Int8Inputs} }

// Memory counts W and decoded values, codes and scales, and what they are packed into.
func (m Nearest) Memory(out, in int) int64 { return (2*4 + 2) * int64(out) * int64(in) }

// Open returns a solver that goes by the mean squares of the inputs.
func (m Nearest) Open(in *Stats) Solver {
	if in == nil {
		return nearest{}
	}
	return nearest{in.Importance()}
}

type nearest struct{ importance []float32 }

func (s nearest) Quantize(_ context.Context, j Job) (Result, error) {
	return Result{Weight: RTN(j.W, s.importance, j.Grid), Target: j.W}, nil
}
