package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
)

// Source is a checkpoint: a model with all of its metadata.
type Source interface {
	model.Source
	Metadata() gguf.Metadata
}

// Plan is what a run will write. It is made from headers alone, and does not change: With, Assign and runs make others.
type Plan struct {
	Recipe   Recipe
	Metadata gguf.Metadata
	Tensors  []Tensor // in the order of the file
	File     *gguf.Plan
	// NoBias names the quantized linears that bias correction leaves alone: GGUF readers load no bias for them.
	NoBias []string
	// Assignment says how types were assigned within a budget (Assign); nil if they were not.
	Assignment *Assignment

	form Form // of Recipe.Container; nil for a GGUF file
}

// Tensor is a tensor of the plan.
type Tensor struct {
	ggml.Info            // as it will be written
	From      *ggml.Type // the checkpoint's type
	Wanted    *ggml.Type // what the recipe asks for; differs from Type where that does not divide the columns
	Role      model.Role

	coded  bool      // the source's codes are kept: Recipe.KeepCodes
	values []float32 // of a tensor that the source does not have: the factors of one that is coded
}

// linears lists the IDs of the layer's linears that the tensor holds: none if it is no linear, several of experts.
func (t *Tensor) linears() []string {
	switch {
	case t.Role != model.RoleLinear:
		return nil
	case len(t.Shape) < 3:
		return []string{t.Name}
	}
	names := make([]string, t.Shape[0])
	for e := range names {
		names[e] = ggml.ExpertName(t.Name, e)
	}
	return names
}

// NewPlan applies a recipe to a checkpoint.
func NewPlan(src Source, r Recipe) (*Plan, error) {
	p := &Plan{Recipe: r, Metadata: inherited(src.Metadata())}
	if r.Method == nil {
		return nil, errors.New("the recipe has no method")
	}
	if r.Method.Needs().Int8Inputs && r.Type != ggml.Q8_0 {
		return nil, fmt.Errorf("method %s has Q8_0 weights, not %v", r.Method.Name(), r.Type)
	}
	if s := r.Smooth; s != nil && !(s.Alpha >= 0 && s.Alpha <= 1) {
		return nil, fmt.Errorf("smoothing with alpha %g: want 0 to 1", s.Alpha)
	}
	if err := r.checkContainer(); err != nil {
		return nil, err
	}
	// Methods that never run the model could do without, but would write files that readers refuse: with tensors missing,
	// or with types that another architecture's tensors must not have.
	m, err := arch.Open(src)
	if err != nil {
		return nil, err
	}
	used := make([]bool, len(r.Rules))
	infos := src.Tensors()
	for i := range infos {
		in := &infos[i]
		if in.Type.Grid != nil && !r.Requantize && !isOriginal(src) {
			return nil, fmt.Errorf("%s: tensor %q is %s, already quantized; quantize the F32, F16 or BF16 original, or allow with "+
				"--allow-requantize that its errors stay", src.Name(), in.Name, in.Type.Name)
		}
		t, wanted, rule, err := r.typeOf(in, m.Role(in.Name))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", src.Name(), err)
		}
		if rule >= 0 {
			used[rule] = true
		} else if in.Type.Grid != nil && t.Grid == nil && m.Role(in.Name) == model.RoleLinear && isOriginal(src) {
			t, wanted = in.Type, in.Type // floats would hold the same values in more bytes
		}
		p.Tensors = append(p.Tensors, Tensor{
			Info: ggml.Info{Name: in.Name, Type: t, Shape: in.Shape}, From: in.Type, Wanted: wanted,
			Role: m.Role(in.Name),
		})
	}
	if r.BiasCorrection {
		if err := p.addBiases(m); err != nil {
			return nil, err
		}
	}
	if r.KeepCodes {
		p.keepCodes(src)
	}
	if len(p.Tensors) == 0 {
		return nil, fmt.Errorf("%s: no tensors", src.Name())
	}
	for i, ok := range used {
		if !ok {
			return nil, r.unusedRule(i, src)
		}
	}
	p.Metadata.Set("general.file_type", fileType(p.mainType()))
	p.Metadata.Set("general.quantization_version", uint32(2)) // ggml's GGML_QNT_VERSION
	p.Metadata.Set(model.MethodKey, r.Method.Name())
	if p.quantizes() {
		p.Metadata.Set(model.ErrorsKey, make([]float32, len(p.Tensors))) // room for setErrors
	}
	if r.Method.Needs().Int8Inputs {
		p.addScales()
	}
	if err := p.planForm(); err != nil {
		return nil, err
	}
	p.File, err = gguf.NewPlan(p.Metadata, p.infos(), r.PartBytes)
	return p, err
}

// isOriginal says whether a source's quantized tensors are as the model's authors gave them, so that there is no original to
// take in their place.
func isOriginal(src Source) bool {
	o, ok := src.(interface{ Original() bool })
	return ok && o.Original()
}

// inherited is the metadata of a checkpoint without what a file tells of how its tensors were rounded, which is not true of
// another: ours, and what llama-quantize says of its importance matrix.
func inherited(md gguf.Metadata) gguf.Metadata {
	return slices.DeleteFunc(slices.Clone(md), func(kv gguf.KV) bool {
		return strings.HasPrefix(kv.Key, "llmq.") || strings.HasPrefix(kv.Key, "quantize.imatrix.")
	})
}

// quantizes says whether any tensor becomes a quantized one.
func (p *Plan) quantizes() bool {
	return slices.ContainsFunc(p.Tensors, func(t Tensor) bool { return t.Type.Grid != nil })
}

// With returns the plan with entries added to the file's metadata, or in place of those of the same keys.
func (p *Plan) With(entries gguf.Metadata) (*Plan, error) { return p.with(p.Tensors, entries) }

// with is With for other tensors too.
func (p *Plan) with(tensors []Tensor, entries gguf.Metadata) (*Plan, error) {
	next := *p
	next.Tensors = tensors
	md := slices.Clone(p.Metadata)
	for _, kv := range entries {
		md.Set(kv.Key, kv.Value)
	}
	next.Metadata = md
	var err error
	next.File, err = gguf.NewPlan(md, next.infos(), p.Recipe.PartBytes)
	return &next, err
}

// addBiases plans a bias for each quantized linear that has none, where readers of the architecture load one.
func (p *Plan) addBiases(m *model.Model) error {
	var ts []Tensor
	corrected := 0
	for _, t := range p.Tensors {
		ts = append(ts, t)
		if t.Role != model.RoleLinear || t.Type.Grid == nil {
			continue
		}
		if len(t.Shape) > 2 || !m.LoadsBias(t.Name) {
			p.NoBias = append(p.NoBias, t.Name)
			continue
		}
		corrected++
		if name := biasName(t.Name); p.Lookup(name) == nil {
			ts = append(ts, Tensor{
				Info: ggml.Info{Name: name, Type: ggml.F32, Shape: t.Shape[:1]}, From: ggml.F32, Wanted: ggml.F32,
				Role: model.RoleVector,
			})
		}
	}
	if corrected == 0 {
		return fmt.Errorf("%s: bias correction: GGUF readers load no bias for any quantized linear of architecture %q",
			m.Source.Name(), m.Arch)
	}
	p.Tensors = ts
	return nil
}

// corrects says whether the bias of a linear is corrected. It is if there is one: a budget may have made a linear
// floating-point since.
func (p *Plan) corrects(t *Tensor) bool {
	return p.Recipe.BiasCorrection && p.Lookup(biasName(t.Name)) != nil && !slices.Contains(p.NoBias, t.Name)
}

func biasName(weight string) string { return ggml.ParseName(weight).With("bias") }

func (p *Plan) infos() []ggml.Info {
	infos := make([]ggml.Info, len(p.Tensors))
	for i := range p.Tensors {
		infos[i] = p.Tensors[i].Info
	}
	return infos
}

// Lookup returns the plan of a tensor, nil if there is none.
func (p *Plan) Lookup(name string) *Tensor {
	for i := range p.Tensors {
		if p.Tensors[i].Name == name {
			return &p.Tensors[i]
		}
	}
	return nil
}

// Elements is the number of weights in the file.
func (p *Plan) Elements() int64 {
	var n int64
	for i := range p.Tensors {
		n += int64(p.Tensors[i].Elements())
	}
	return n
}

// BitsPerWeight is the tensors' size over their number of weights.
func (p *Plan) BitsPerWeight() float64 {
	var bytes int64
	for i := range p.Tensors {
		bytes += p.Tensors[i].Bytes()
	}
	return 8 * float64(bytes) / float64(max(p.Elements(), 1))
}

// mainType is the type that most weights of the layers have; that of the earlier tensor wins a tie.
func (p *Plan) mainType() *ggml.Type {
	count := map[*ggml.Type]int{}
	var best *ggml.Type
	for i := range p.Tensors {
		t := &p.Tensors[i]
		if t.Role != model.RoleLinear {
			continue
		}
		count[t.Type] += t.Elements()
	}
	for i := range p.Tensors {
		if t := p.Tensors[i].Type; count[t] > 0 && (best == nil || count[t] > count[best]) {
			best = t
		}
	}
	if best == nil {
		best = p.Tensors[0].Type
	}
	return best
}

// fileTypes are llama.cpp's numbers for files whose linears are all of one type (enum llama_ftype in llama.h).
var fileTypes = map[*ggml.Type]uint32{
	ggml.F32: 0, ggml.F16: 1, ggml.Q4_0: 2, ggml.Q4_1: 3, ggml.Q8_0: 7, ggml.Q5_0: 8, ggml.Q5_1: 9, ggml.Q2_K: 10,
	ggml.Q3_K: 11, ggml.Q4_K: 14, ggml.Q5_K: 16, ggml.Q6_K: 18, ggml.IQ2_XXS: 19, ggml.IQ2_XS: 20, ggml.IQ3_XXS: 23,
	ggml.IQ1_S: 24, ggml.IQ4_NL: 25, ggml.IQ3_S: 26, ggml.IQ2_S: 28, ggml.IQ4_XS: 30, ggml.IQ1_M: 31, ggml.BF16: 32,
	ggml.TQ1_0: 36, ggml.TQ2_0: 37, ggml.MXFP4: 38, ggml.NVFP4: 39, ggml.Q1_0: 40, ggml.Q2_0: 41,
}

func fileType(t *ggml.Type) uint32 { return fileTypes[t] }
