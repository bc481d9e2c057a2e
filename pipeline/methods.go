package pipeline

import (
	"slices"

	"github.com/llmq/llmq/awq"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/smoothquant"
)

// The methods, with their default options.
var (
	// RTN rounds to nearest, with scales searched by the importance of the inputs if there is calibration text.
	RTN quant.Method = quant.Nearest{}
	// GPTQ compensates each column's error in the columns after it; see package gptq.
	GPTQ quant.Method = gptq.Method{}
	// AWQ scales the channels of each site, clips, and rounds to nearest; see package awq.
	AWQ quant.Method = awq.Method{}
	// AWQGPTQ takes AWQ's scales, as far as GPTQ loses less with them, and GPTQ for the rest.
	AWQGPTQ quant.Method = scaledGPTQ{}
	// Int8 is RTN to Q8_0 for weights, with the scales of the linears' inputs measured and stored in the metadata, so that
	// products can be taken in eight bits on both sides (W8A8).
	Int8 quant.Method = quant.Nearest{Int8Inputs: true}
	// Auto measures for each site which of GPTQ, SmoothQuant and GPTQ, AWQ and GPTQ, and AWQ has the least error.
	Auto quant.Method = auto{}
)

// Methods lists the methods.
var Methods = methods(gptq.Method{})

// methods is the registry: all methods, with g where GPTQ has a part in them.
func methods(g gptq.Method) []quant.Method {
	return []quant.Method{RTN, g, AWQ, scaledGPTQ{g}, Int8, auto{g}}
}

// MethodNames lists their names.
func MethodNames() []string {
	names := make([]string, len(Methods))
	for i, m := range Methods {
		names[i] = m.Name()
	}
	return names
}

// MethodByName returns the method of that name, nil if there is none.
func MethodByName(name string) quant.Method {
	return named(Methods, name)
}

func named(methods []quant.Method, name string) quant.Method {
	if i := slices.IndexFunc(methods, func(m quant.Method) bool { return m.Name() == name }); i >= 0 {
		return methods[i]
	}
	return nil
}

// WithGPTQ returns m with GPTQ's options where GPTQ has a part in it.
func WithGPTQ(m quant.Method, opt gptq.Options) quant.Method {
	return named(methods(gptq.Method{Options: opt}), m.Name())
}

// UsesGPTQ says whether GPTQ, and so its options, have a part in m.
func UsesGPTQ(m quant.Method) bool {
	switch m.(type) {
	case gptq.Method, scaledGPTQ, auto:
		return true
	}
	return false
}

// roundingOps is how many floating-point operations a method's matrix products take for a weight and a column of its row, with factors
// rounded to bfloat16 and in float32: what makes wide rows take longer for each weight.
func roundingOps(m quant.Method) (rounded, exact float64) {
	var g gptq.Method
	switch m := m.(type) {
	case gptq.Method:
		g = m
	case scaledGPTQ:
		g = m.Method
	case auto:
		g = m.Method
	case awq.Method:
		return 0, 2 + 2*awq.ClipPasses // the gradient of the error, and its changes
	default:
		return 0, 0
	}
	// The sweep's errors reach half of the columns; descent begins with its gradient and tells all columns of a pass's changes, or in the
	// last pass those to come.
	rounded = 1
	if passes := g.Options.Passes(); passes > 0 {
		rounded += float64(2*(passes-1) + 1)
		exact = 2
	}
	return rounded, exact
}

// scaledGPTQ is GPTQ after AWQ's scales.
type scaledGPTQ struct{ gptq.Method }

func (scaledGPTQ) Name() string { return "awq+gptq" }

func (m scaledGPTQ) Needs() quant.Needs {
	n := m.Method.Needs()
	n.Transforms, n.Trials = awq.Method{}.Needs().Transforms, true
	return n
}

// auto is GPTQ for the head, and for each site one of its ways.
type auto struct{ gptq.Method }

func (auto) Name() string { return "auto" }

func (m auto) Needs() quant.Needs {
	n := m.Method.Needs()
	n.Trials, n.Decides = true, true
	return n
}

// way is a transform, then a method.
type way struct {
	name      string
	transform quant.Transform // nil: none
	method    quant.Method
}

// ways are what is tried for each site by a method that decides: none by others. The first of equals wins. Those with one transform
// follow each other.
func (r *Recipe) ways() []way {
	m, ok := r.Method.(auto)
	if !ok {
		return nil
	}
	return []way{
		{m.Method.Name(), nil, m.Method},
		{"smoothquant+gptq", smoothquant.Smoothing{Auto: true}, m.Method},
		{AWQGPTQ.Name(), awq.Scaling{}, m.Method},
		{AWQ.Name(), awq.Scaling{}, AWQ},
	}
}
