package pipeline

import (
	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// observer notes what eight bits have to hold of the inputs that calibration sees.
type observer struct {
	sites  map[string]string  // by linear
	absmax map[string]float32 // by site
	// features are of the inputs as the original model has them: transforms change the unit that the criteria take for granted.
	features int8outlier.Collector
}

func newObserver() *observer {
	return &observer{sites: map[string]string{}, absmax: map[string]float32{}}
}

// observe notes a batch of inputs of a site. scale, if any, is what a transform has divided them by.
func (o *observer) observe(s *model.Site, x *tensor.Matrix, scale []float32) {
	id := s.ID()
	absmax := o.absmax[id]
	for t := range x.Rows {
		for _, v := range x.Row(t) {
			absmax = max(absmax, v, -v)
		}
	}
	o.absmax[id] = absmax
	for _, lin := range s.Linears {
		o.sites[lin.ID()] = id
	}
	if scale != nil {
		x = x.Clone()
		for t := range x.Rows {
			for j, v := range x.Row(t) {
				x.Row(t)[j] = v * scale[j]
			}
		}
	}
	o.features.Observe(id, s.Shares, x)
}

// outliers returns the outlier features of a linear's input. Experts have none: their Q8_0 weights take any input.
func (o *observer) outliers(linear string) []uint32 {
	var features []uint32
	for _, j := range o.features.Features(o.sites[linear]) {
		features = append(features, uint32(j))
	}
	return features
}

// scales are those that give the largest magnitude of each linear's input the code 127: 0 of an expert that no token has
// reached.
func (o *observer) scales(p *Plan) []float32 {
	var scales []float32
	for i := range p.Tensors {
		for _, name := range p.Tensors[i].linears() {
			scales = append(scales, quant.Int8Scale(o.absmax[o.sites[name]]))
		}
	}
	return scales
}

// addScales plans room for the scales of the linears' inputs.
func (p *Plan) addScales() {
	var linears []string
	for i := range p.Tensors {
		linears = append(linears, p.Tensors[i].linears()...)
	}
	p.Metadata.Set(model.StaticLinearsKey, linears)
	p.Metadata.Set(model.StaticScalesKey, make([]float32, len(linears)))
}
