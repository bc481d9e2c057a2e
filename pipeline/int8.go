package pipeline

import (
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// inputs is what calibration saw of the values that enter a layer's group of linears.
type inputs struct {
	shares string // of model.Site
	absmax float32
	// counts are of the inputs as the original model has them: transforms change the unit that the criteria take for granted.
	counts int8outlier.Counts
}

// observe notes a batch of inputs of a site, where the method or a fallback to eight bits asks for it.
func (r *run) observe(g *model.Site, x *tensor.Matrix) {
	if r.inputs == nil {
		return
	}
	in := r.inputs[g.Linears[0].ID()]
	if in == nil {
		in = &inputs{shares: g.Shares}
		r.groups = append(r.groups, in)
		for _, lin := range g.Linears {
			r.inputs[lin.ID()] = in
		}
	}
	for t := range x.Rows {
		for _, v := range x.Row(t) {
			in.absmax = max(in.absmax, v, -v)
		}
	}
	if s := r.scales[g.Linears[0].ID()]; s != nil {
		x = x.Clone()
		for t := range x.Rows {
			for j, v := range x.Row(t) {
				x.Row(t)[j] = v * s[j]
			}
		}
	}
	int8outlier.Criteria{}.Observe(&in.counts, x)
}

// addScales plans room for the scales of the linears' inputs, which setScales fills in.
func (p *Plan) addScales() {
	var linears []string
	for i := range p.Tensors {
		linears = append(linears, p.Tensors[i].linears()...)
	}
	p.Metadata.Set(model.StaticLinearsKey, linears)
	p.Metadata.Set(model.StaticScalesKey, make([]float32, len(linears)))
}

// setScales stores the scales that give the largest magnitude seen the code 127.
func (r *run) setScales(out *gguf.Writer) error {
	var scales []float32
	for i := range r.plan.Tensors {
		for _, name := range r.plan.Tensors[i].linears() {
			var absmax float32 // 0 of an expert that no token has reached
			if in := r.inputs[name]; in != nil {
				absmax = in.absmax
			}
			scales = append(scales, quant.Int8.Symmetric(absmax).Scale)
		}
	}
	return out.SetMeta(model.StaticScalesKey, scales)
}
