package quant

import (
	"fmt"
	"math"

	"github.com/llmq/llmq/tensor"
)

// Range is the integers from Min to Max that a code can be.
type Range struct{ Min, Max int }

// The usual ranges of eight bits. The symmetric one leaves −128 out, so that −x has the code of x with its sign changed.
var (
	UInt8 = Range{0, 255}
	Int8  = Range{-127, 127}
)

// Affine is a scale and a zero point, the textbook's uniform quantization: code q in [Min, Max] stands for Scale·(q − Zero).
type Affine struct {
	Scale float32
	Zero  int // the code of 0, in [Min, Max]
	Range
}

// Asymmetric spreads the codes over the values from lo to hi. The range is widened to hold 0, which always has a code of
// its own: padding, and what a ReLU cuts off, stays exact. lo = hi = 0 gives the scale 0.
func (r Range) Asymmetric(lo, hi float32) Affine {
	lo, hi = min(lo, 0), max(hi, 0)
	// In float64: the difference of two float32 values may overflow.
	scale := (float64(hi) - float64(lo)) / float64(r.Max-r.Min)
	a := Affine{Scale: float32(scale), Zero: r.Min, Range: r}
	if scale > 0 {
		a.Zero = r.Min + int(math.RoundToEven(-float64(lo)/scale))
	}
	return a
}

// Symmetric gives the values −absmax to absmax codes on both sides of the range's middle, which is the code of 0: an
// unsigned range 0..255 has it at 128.
func (r Range) Symmetric(absmax float32) Affine {
	zero := (r.Min + r.Max + 1) / 2
	return Affine{Scale: absmax / float32(min(r.Max-zero, zero-r.Min)), Zero: zero, Range: r}
}

// Code returns clamp(round(x/Scale) + Zero), ties away from 0 as the textbook has them. With a zero scale it is Zero.
func (a Affine) Code(x float32) int { return a.code(x, math.Round) }

func (a Affine) code(x float32, round func(float64) float64) int {
	if a.Scale == 0 {
		return a.Zero
	}
	// The quotient is taken in float32, the scale's precision: a scale that is rounded down would turn a tie into more.
	v := round(float64(x/a.Scale)) + float64(a.Zero)
	// Clamp before converting: an integer conversion of a huge value is not defined.
	return int(min(max(v, float64(a.Min)), float64(a.Max)))
}

// Value returns what code q stands for.
func (a Affine) Value(q int) float32 { return a.Scale * float32(q-a.Zero) }

// Noise returns Scale²/12, the mean squared error of rounding values that are spread evenly within a step and not
// clipped; stochastic rounding's is twice that.
func (a Affine) Noise() float64 { return float64(a.Scale) * float64(a.Scale) / 12 }

// Granularity is how many weights share a scale and a zero point.
type Granularity int

const (
	PerTensor  Granularity = iota // all of them
	PerChannel                    // a row: an output channel
	PerGroup                      // Scheme.Group consecutive columns of a row
)

// Scheme says how to quantize a matrix. The zero value of all but Range is asymmetric, per tensor, to nearest.
type Scheme struct {
	Range
	Symmetric   bool
	Granularity Granularity
	Group       int // columns, for PerGroup; the last group of a row may be shorter
	Rounding    Rounding
}

// Codes is a matrix quantized by a scheme.
type Codes struct {
	Rows, Cols int
	Codes      []int16  // Rows×Cols
	Params     []Affine // one for each set of weights that share them, row by row

	group int // columns that share Params; 0: all weights do
}

// Quantize chooses scales from the least and the largest weight of each set, and rounds. Weights should be finite.
func (s Scheme) Quantize(w *tensor.Matrix) *Codes {
	if s.Min < math.MinInt16 || s.Max > math.MaxInt16 || s.Min >= s.Max {
		panic(fmt.Sprintf("quant: codes from %d to %d", s.Min, s.Max))
	}
	q := &Codes{Rows: w.Rows, Cols: w.Cols, Codes: make([]int16, w.Rows*w.Cols)}
	switch s.Granularity {
	case PerTensor:
		var lo, hi float32
		for r := range w.Rows {
			a, b := bounds(w.Row(r))
			lo, hi = min(lo, a), max(hi, b)
		}
		q.Params = []Affine{s.fit(lo, hi)}
	case PerChannel:
		q.group = w.Cols
	case PerGroup:
		if s.Group <= 0 {
			panic(fmt.Sprintf("quant: groups of %d columns", s.Group))
		}
		q.group = s.Group
	}
	for r := range w.Rows {
		row := w.Row(r)
		if q.group > 0 {
			for j := 0; j < w.Cols; j += q.group {
				q.Params = append(q.Params, s.fit(bounds(row[j:min(j+q.group, w.Cols)])))
			}
		}
		round := s.Rounding.rounder(uint64(r))
		for j, v := range row {
			q.Codes[r*w.Cols+j] = int16(q.Param(r, j).code(v, round))
		}
	}
	return q
}

func (s Scheme) fit(lo, hi float32) Affine {
	if s.Symmetric {
		return s.Range.Symmetric(max(-lo, hi))
	}
	return s.Range.Asymmetric(lo, hi)
}

// bounds returns the least and the largest of x and 0.
func bounds(x []float32) (lo, hi float32) {
	for _, v := range x {
		lo, hi = min(lo, v), max(hi, v)
	}
	return lo, hi
}

// Param returns the scale and zero point of the weight in row r and column j.
func (q *Codes) Param(r, j int) Affine {
	if q.group == 0 {
		return q.Params[0]
	}
	return q.Params[r*((q.Cols+q.group-1)/q.group)+j/q.group]
}

// DecodeTo sets dst, Rows×Cols, to the values of the codes.
func (q *Codes) DecodeTo(dst *tensor.Matrix) {
	for r := range q.Rows {
		out := dst.Row(r)
		for j := range out {
			out[j] = q.Param(r, j).Value(int(q.Codes[r*q.Cols+j]))
		}
	}
}

// Noise returns the estimate of ‖W−Ŵ‖² that adds up Affine.Noise over all weights.
func (q *Codes) Noise() float64 {
	var sum float64
	for r := range q.Rows {
		for j := range q.Cols {
			sum += q.Param(r, j).Noise()
		}
	}
	return sum
}

// Noise returns the estimate of ‖W−Ŵ‖² that rounding to nearest makes, Δ²/12 for each weight, where Δ is the width of
// the cell of values that share its code: the scale, or half the distance between a codebook's neighbouring levels on
// both sides. Clipping is not in it, nor what a method adds to make up for other errors: a measured error well above it
// shows them, and one below it weights that sit on the grid.
func (w *Weight) Noise() float64 {
	var sum float64
	for r := range w.Rows {
		for i := range w.Cols / w.Grid.Block {
			b := w.Block(r, i)
			sum += b.Noise(w.Grid)
		}
	}
	return sum
}

// Noise is Weight.Noise for one block.
func (b *Block) Noise(g *Grid) float64 {
	var sum float64
	for k := range g.Groups() {
		scale, _ := b.Scale(k)
		cells := float64(g.Group)
		if g.Codebook != nil {
			cells = 0
			for _, q := range b.Codes[k*g.Group : (k+1)*g.Group] {
				c := g.cell(q)
				cells += c * c
			}
		}
		sum += float64(scale) * float64(scale) * cells / 12
	}
	return sum
}

// cell is the width of code q's cell in levels of a codebook. An outermost cell is as wide as its inner half says.
func (g *Grid) cell(q int8) float64 {
	i := int(q) - g.CodeMin
	lo, hi := max(i-1, 0), min(i+1, len(g.Codebook)-1)
	return float64(g.Codebook[hi]-g.Codebook[lo]) / float64(hi-lo)
}
