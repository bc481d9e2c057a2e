package quant

import (
	"context"
	"math"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/i8"
	"github.com/llmq/llmq/tensor"
)

// Linear is a weight as a transform sees it.
type Linear struct {
	Name string
	W    *tensor.Matrix // out×in; transforms scale it in place
	Bias []float32      // out values, or nil
	Grid Grid           // what W will be rounded to; nil where it stays floating-point
	// Product: see Job.
	Product bool
}

// Scaler is what produces an input channel by channel, so that a factor on a channel can move into it: the weights of a
// norm or the rows of a linear.
type Scaler struct {
	Name string    // the tensor's
	Norm []float32 // nil for a linear
	// Row gives the linear's row that produces each channel; nil for a norm. Channels of one row share one scale: with
	// grouped-query attention several channels of attn_output's input come from one row of attn_v.
	Row []int
}

// Share replaces the values of channels that one row produces by their largest, so that scales computed from v are
// equal where they must be.
func (p *Scaler) Share(v []float32) {
	if p.Row == nil {
		return
	}
	largest := make([]float32, slices.Max(p.Row)+1)
	for j, r := range p.Row {
		largest[r] = max(largest[r], v[j])
	}
	for j, r := range p.Row {
		v[j] = largest[r]
	}
}

// Group is linears that share one input, with all that is needed to choose a scale for each channel of it and to fold
// the scales away: W·diag(s) on inputs that Prev delivers divided by s computes what W did.
type Group struct {
	Name    string
	Prev    *Scaler // nil: nothing can absorb the scales
	Before  *Linear // the linear that Prev names; nil for a norm, and where scales are only looked for
	Linears []*Linear
	In      *Inputs
	// Sample holds some of the inputs, tokens×in, and Block computes from them and from the linears' weights what the
	// block that follows puts out, tokens×any. Block nil means the linears' own outputs, without biases.
	Sample *tensor.Matrix
	Block  func(x *tensor.Matrix, weights []*tensor.Matrix) *tensor.Matrix

	// Int8Inputs: the inputs will be rounded to eight bits, each token with a scale of its own.
	Int8Inputs bool

	want []*tensor.Matrix // the outputs of the linears' weights
}

// Transform finds scales with which a group loses less when it is rounded, or says why there are none. It leaves the
// group as it is.
type Transform interface {
	Transform(ctx context.Context, g *Group) (*Folding, error)
}

// Folding tells what a transform has found for a group. The JSON names are part of the command line's interface.
type Folding struct {
	Transform string `json:"transform"`
	Group     string `json:"group"`
	Into      string `json:"into"` // the tensor that absorbed 1/s
	// Alpha and Beta are the exponents in s = x^Alpha/w^Beta, x and w being how large a channel and its column are.
	Alpha float64 `json:"alpha"`
	Beta  float64 `json:"beta"`
	// Before and After are the relative squared errors of the output of the block that follows, with the group's
	// weights rounded to nearest, without and with the scales.
	Before float64 `json:"error_before"`
	After  float64 `json:"error_after"`
	// Skipped says why the group stays as it is; empty where it does not.
	Skipped string `json:"skipped"`
	// Scale is for Group.Scale; nil where the group stays as it is.
	Scale []float32 `json:"-"`
}

// Foldable returns why g cannot be scaled, or need not be; empty if it can.
func (g *Group) Foldable() string {
	if g.Prev == nil {
		return "no norm and no linear produces its input channel by channel"
	}
	for _, l := range g.Linears {
		if l.Grid != nil {
			return ""
		}
	}
	return "none of its linears is quantized"
}

// Scale multiplies the columns of the linears by scale and divides Prev's channels by it. Only the weights' rounding in
// float32 changes the function that the model computes.
func (g *Group) Scale(scale []float32) {
	for _, l := range g.Linears {
		scaleColumns(l.W, l.W, scale, false)
	}
	g.dividePrev(scale)
	g.In.divide(scale)
	if g.Sample != nil {
		scaleColumns(g.Sample, g.Sample, scale, true)
	}
}

// dividePrev divides what produces channel j by scale[j], which is equal for channels of one row.
func (g *Group) dividePrev(scale []float32) {
	if g.Before == nil {
		for j, s := range scale {
			g.Prev.Norm[j] /= s
		}
		return
	}
	done := make([]bool, g.Before.W.Rows)
	for j, r := range g.Prev.Row {
		if done[r] {
			continue
		}
		done[r] = true
		row := g.Before.W.Row(r)
		for c := range row {
			row[c] /= scale[j]
		}
		if g.Before.Bias != nil {
			g.Before.Bias[r] /= scale[j]
		}
	}
}

// roundedRows is how many rows of each linear RoundingError rounds: the errors of rows add up in the output, so some of
// them tell one scale from another as well as all.
const roundedRows = 256

// RoundingError returns the error ‖y−ŷ‖²/‖y‖² of the output y of the block that follows on the sampled inputs, if the
// group were scaled and its weights then rounded to nearest on their grids. scale nil means unscaled. Of a linear with
// more than 256 rows only so many are rounded, the same at each call.
func (g *Group) RoundingError(scale []float32) float64 {
	importance := g.In.MeanSquare()
	for j, s := range scale {
		importance[j] /= s * s
	}
	e, _ := g.QuantizedError(scale, func(l *Linear, rows *tensor.Matrix) (*Weight, error) {
		return RTN(rows, importance, l.Grid), nil
	})
	return e
}

// QuantizedError is RoundingError with another way to quantize, which is given some of l's rows, already scaled.
func (g *Group) QuantizedError(scale []float32, quantize func(l *Linear, rows *tensor.Matrix) (*Weight, error)) (float64, error) {
	weights := make([]*tensor.Matrix, len(g.Linears))
	for i, l := range g.Linears {
		weights[i] = l.W
		if l.Grid == nil {
			continue
		}
		weights[i] = l.W.Clone()
		rows := tensor.New(min(l.W.Rows, roundedRows), l.W.Cols)
		for k := range rows.Rows {
			copy(rows.Row(k), l.W.Row(k*l.W.Rows/rows.Rows))
		}
		if scale != nil {
			scaleColumns(rows, rows, scale, false)
		}
		q, err := quantize(l, rows)
		if err != nil {
			return 0, err
		}
		q.DecodeTo(rows)
		if scale != nil {
			scaleColumns(rows, rows, scale, true)
		}
		for k := range rows.Rows {
			copy(weights[i].Row(k*l.W.Rows/rows.Rows), rows.Row(k))
		}
	}
	if g.want == nil {
		exact := make([]*tensor.Matrix, len(g.Linears))
		for i, l := range g.Linears {
			exact[i] = l.W
		}
		g.want = g.outputs(g.Sample, exact)
	}
	var num, den float64
	for i, y := range g.outputs(g.inputs(scale), weights) {
		n, d := distance(g.want[i], y)
		num, den = num+n, den+d
	}
	return ratio(num, den), nil
}

// inputs returns the sample as the linears will see it, with scale folded and taken out again.
func (g *Group) inputs(scale []float32) *tensor.Matrix {
	if !g.Int8Inputs {
		return g.Sample
	}
	x := g.Sample.Clone()
	if scale != nil {
		scaleColumns(x, x, scale, true)
	}
	codes := i8.New(x.Rows, x.Cols, x.Cols)
	Int8Rows(codes, x, nil)
	for t := range x.Rows {
		row := x.Row(t)
		for j, c := range codes.Row(t) {
			row[j] = codes.Scale[t] * float32(c)
		}
	}
	if scale != nil {
		scaleColumns(x, x, scale, false)
	}
	return x
}

// outputs returns what Block, or each linear, makes of some inputs.
func (g *Group) outputs(x *tensor.Matrix, weights []*tensor.Matrix) []*tensor.Matrix {
	if g.Block != nil {
		return []*tensor.Matrix{g.Block(x, weights)}
	}
	ys := make([]*tensor.Matrix, len(weights))
	for i, w := range weights {
		ys[i] = tensor.New(x.Rows, w.Rows)
		gemm.MatMulF32(ys[i], x, w)
	}
	return ys
}

// Balance returns x_j^alpha / w_j^beta for magnitudes x and w of channels. Those below leastShare of the largest, of channels
// that are never excited or have no weights, count as that.
func Balance(x, w []float32, alpha, beta, leastShare float64) []float64 {
	least := func(v []float32) float64 {
		if largest := slices.Max(v); largest > 0 {
			return leastShare * float64(largest)
		}
		return 1
	}
	leastX, leastW := least(x), least(w)
	s := make([]float64, len(x))
	for j := range s {
		s[j] = math.Pow(max(float64(x[j]), leastX), alpha) / math.Pow(max(float64(w[j]), leastW), beta)
	}
	return s
}

// distance returns ‖a−b‖² and ‖a‖².
func distance(a, b *tensor.Matrix) (num, den float64) {
	for r := range a.Rows {
		y := b.Row(r)
		for j, v := range a.Row(r) {
			d := float64(v) - float64(y[j])
			num += d * d
			den += float64(v) * float64(v)
		}
	}
	return num, den
}

// scaleColumns sets dst = src·diag(scale), or src·diag(scale)⁻¹ where inverse is set. dst may be src.
func scaleColumns(dst, src *tensor.Matrix, scale []float32, inverse bool) {
	kernels.Parallel(src.Rows, 64, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			in, out := src.Row(r), dst.Row(r)
			if inverse {
				for j, s := range scale {
					out[j] = in[j] / s
				}
				continue
			}
			for j, s := range scale {
				out[j] = in[j] * s
			}
		}
	})
}

// Inputs sums up each channel of a group's input.
type Inputs struct {
	Tokens  int
	abs, sq []float64
	largest []float32
}

// NewInputs returns an empty summary of in channels.
func NewInputs(in int) *Inputs {
	return &Inputs{abs: make([]float64, in), sq: make([]float64, in), largest: make([]float32, in)}
}

// Observe adds a batch of inputs, tokens×in.
func (s *Inputs) Observe(x *tensor.Matrix) {
	s.Tokens += x.Rows
	// Each channel belongs to one goroutine, so its sums do not depend on their number.
	kernels.Parallel(x.Cols, 16, func(lo, hi int) {
		for t := range x.Rows {
			for j, v := range x.Row(t)[lo:hi] {
				a := float32(math.Abs(float64(v)))
				s.abs[lo+j] += float64(a)
				s.sq[lo+j] += float64(v) * float64(v)
				s.largest[lo+j] = max(s.largest[lo+j], a)
			}
		}
	})
}

// MeanAbs returns the mean magnitude of each channel.
func (s *Inputs) MeanAbs() []float32 { return s.mean(s.abs) }

// MeanSquare returns the mean square of each channel.
func (s *Inputs) MeanSquare() []float32 { return s.mean(s.sq) }

// MaxAbs returns the largest magnitude of each channel.
func (s *Inputs) MaxAbs() []float32 { return append([]float32(nil), s.largest...) }

func (s *Inputs) mean(sum []float64) []float32 {
	m := make([]float32, len(sum))
	for j, v := range sum {
		m[j] = float32(v / float64(max(s.Tokens, 1)))
	}
	return m
}

// divide makes the summary that of inputs divided by scale.
func (s *Inputs) divide(scale []float32) {
	for j, d := range scale {
		s.abs[j] /= float64(d)
		s.sq[j] /= float64(d) * float64(d)
		s.largest[j] /= d
	}
}
