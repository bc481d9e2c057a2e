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
	group    string // model.Group's name
	residual bool   // of model.Group
	absmax   float32
	// counts are of the inputs as the original model has them: transforms change the unit that the criteria take for granted.
	counts int8outlier.Counts
}

// observe notes a batch of inputs of a group, where the method or a fallback to eight bits asks for it.
func (r *run) observe(g *model.Group, x *tensor.Matrix) {
	if r.inputs == nil {
		return
	}
	in := r.inputs[g.Linears[0].Name]
	if in == nil {
		in = &inputs{group: g.Name, residual: g.Residual}
		r.groups = append(r.groups, in)
		for _, lin := range g.Linears {
			r.inputs[lin.Name] = in
		}
	}
	for t := range x.Rows {
		for _, v := range x.Row(t) {
			in.absmax = max(in.absmax, v, -v)
		}
	}
	if s := r.scales[g.Linears[0].Name]; s != nil {
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
		if t := &p.Tensors[i].Info; layerLinear(t) {
			linears = append(linears, t.Name)
		}
	}
	p.Metadata.Set(model.StaticLinearsKey, linears)
	p.Metadata.Set(model.StaticScalesKey, make([]float32, len(linears)))
}

// setScales stores the scales that give the largest magnitude seen the code 127.
func (r *run) setScales(out *gguf.Writer) error {
	var scales []float32
	for i := range r.plan.Tensors {
		if in := r.inputs[r.plan.Tensors[i].Name]; in != nil {
			scales = append(scales, quant.Int8Scale(in.absmax))
		}
	}
	return out.SetMeta(model.StaticScalesKey, scales)
}
