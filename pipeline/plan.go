package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
)

// Source is a checkpoint: a model with all of its metadata.
type Source interface {
	model.Source
	Metadata() gguf.Metadata
}

// Plan is what a run will write. It is made from headers alone.
type Plan struct {
	Recipe   Recipe
	Metadata gguf.Metadata
	Tensors  []Tensor // in the order of the file
	File     *gguf.Plan
	// NoBias names the quantized linears that bias correction leaves alone: GGUF readers load no bias for them.
	NoBias []string
	// Assignment says how types were assigned within a budget (Assign); nil if they were not.
	Assignment *Assignment
}

// Tensor is a tensor of the plan.
type Tensor struct {
	ggml.Info            // as it will be written
	From      *ggml.Type // the checkpoint's type
	Wanted    *ggml.Type // what the recipe asks for; differs from Type where that does not divide the columns
}

// NewPlan applies a recipe to a checkpoint.
func NewPlan(src Source, r Recipe) (*Plan, error) {
	p := &Plan{Recipe: r, Metadata: append(gguf.Metadata(nil), src.Metadata()...)}
	if r.Method == nil {
		return nil, errors.New("the recipe has no method")
	}
	if r.Method.Needs().Int8Inputs && r.Type != ggml.Q8_0 {
		return nil, fmt.Errorf("method %s has Q8_0 weights, not %v", r.Method.Name(), r.Type)
	}
	if s := r.Smooth; s != nil && !(s.Alpha >= 0 && s.Alpha <= 1) {
		return nil, fmt.Errorf("smoothing with alpha %g: want 0 to 1", s.Alpha)
	}
	// Methods that never run the model could do without, but would write files that readers refuse: with tensors missing,
	// or with types that another architecture's tensors must not have.
	if _, err := model.Open(src); err != nil {
		return nil, err
	}
	used := make([]bool, len(r.Rules))
	infos := src.Tensors()
	for i := range infos {
		in := &infos[i]
		if in.Type.Grid != nil {
			return nil, fmt.Errorf("%s: tensor %q is %s, already quantized; quantize the F32, F16 or BF16 original",
				src.Name(), in.Name, in.Type.Name)
		}
		t, wanted, rule, err := r.typeOf(in)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", src.Name(), err)
		}
		if rule >= 0 {
			used[rule] = true
		}
		p.Tensors = append(p.Tensors, Tensor{
			Info: ggml.Info{Name: in.Name, Type: t, Shape: in.Shape}, From: in.Type, Wanted: wanted,
		})
	}
	if r.BiasCorrection {
		if err := p.addBiases(src); err != nil {
			return nil, err
		}
	}
	if len(p.Tensors) == 0 {
		return nil, fmt.Errorf("%s: no tensors", src.Name())
	}
	for i, ok := range used {
		if !ok {
			return nil, fmt.Errorf("tensor type rule %q matches no tensor of %s", r.Rules[i].Pattern, src.Name())
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
	var err error
	p.File, err = gguf.NewPlan(p.Metadata, p.infos())
	return p, err
}

// quantizes says whether any tensor becomes a quantized one.
func (p *Plan) quantizes() bool {
	return slices.ContainsFunc(p.Tensors, func(t Tensor) bool { return t.Type.Grid != nil })
}

// SetMetadata adds entries to the file's metadata, or replaces them.
func (p *Plan) SetMetadata(entries gguf.Metadata) error {
	md := slices.Clone(p.Metadata)
	for _, kv := range entries {
		md.Set(kv.Key, kv.Value)
	}
	file, err := gguf.NewPlan(md, p.infos())
	if err != nil {
		return err
	}
	p.Metadata, p.File = md, file
	return nil
}

// addBiases plans a bias for each quantized linear that has none, where readers of the architecture load one.
func (p *Plan) addBiases(src Source) error {
	v, _ := src.Meta("general.architecture")
	arch, _ := v.(string)
	var ts []Tensor
	corrected := 0
	for _, t := range p.Tensors {
		ts = append(ts, t)
		stem := linearStem(t.Name)
		if stem == "" || t.Type.Grid == nil {
			continue
		}
		if !model.LoadsBias(arch, stem) {
			p.NoBias = append(p.NoBias, t.Name)
			continue
		}
		corrected++
		if name := biasName(t.Name); p.Lookup(name) == nil {
			ts = append(ts, Tensor{
				Info: ggml.Info{Name: name, Type: ggml.F32, Shape: t.Shape[:1]}, From: ggml.F32, Wanted: ggml.F32,
			})
		}
	}
	if corrected == 0 {
		return fmt.Errorf("%s: bias correction: GGUF readers load no bias for any quantized linear of architecture %q",
			src.Name(), arch)
	}
	p.Tensors = ts
	return nil
}

// corrects says whether the bias of a linear is corrected. It is if there is one: a budget may have made a linear
// floating-point since.
func (p *Plan) corrects(t *Tensor) bool {
	return p.Recipe.BiasCorrection && p.Lookup(biasName(t.Name)) != nil && !slices.Contains(p.NoBias, t.Name)
}

func biasName(weight string) string { return strings.TrimSuffix(weight, "weight") + "bias" }

// linearStem returns "attn_q" for "blk.N.attn_q.weight", and "" for a tensor outside the layers.
func linearStem(name string) string {
	parts := strings.Split(name, ".")
	if len(parts) != 4 || parts[0] != "blk" || parts[3] != "weight" {
		return ""
	}
	return parts[2]
}

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
		if len(t.Shape) < 2 || t.Name == embeddingName || t.Name == outputName {
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
	ggml.Q3_K: 11, ggml.Q4_K: 14, ggml.Q5_K: 16, ggml.Q6_K: 18, ggml.IQ4_NL: 25, ggml.IQ4_XS: 30, ggml.BF16: 32,
	ggml.MXFP4: 38, ggml.NVFP4: 39,
}

func fileType(t *ggml.Type) uint32 { return fileTypes[t] }

// Needs estimates what a run takes, in bytes.
type Needs struct {
	Memory int64 // at its peak, mapped pages of the checkpoint aside
	Disk   int64 // the output, and the hidden states that the memory budget does not hold
}

// Needs estimates a run. With a model it is calibrated on so many tokens, and holds the hidden states, as far as the
// budget (0: no limit) keeps them in memory, what a stage of the forward pass computes from a batch of them, and what
// the largest group of linears needs. With nil it is not calibrated and holds a piece of a tensor.
func (p *Plan) Needs(m *model.Model, tokens int, budget int64) Needs {
	var piece int64 // in weights
	for i := range p.Tensors {
		piece = max(piece, min(int64(p.Tensors[i].Elements()), batchWeights))
	}
	needs := Needs{Memory: piece * pieceBytes, Disk: p.File.Size()}
	if m == nil {
		return needs
	}
	streams := int64(1)
	if p.Recipe.original() {
		streams = 2 // the quantized model's and the original's
	}
	method := p.Recipe.Method
	q, kv := m.Heads*m.HeadDim, m.KVHeads*m.HeadDim
	in := []int{m.Dim, q, m.Dim, m.FFN}
	out := []int{q + 2*kv, m.Dim, 2 * m.FFN, m.Dim}
	var group, all, largest int64 // in bytes; all and largest of Hessians
	for i := range in {
		n, o := int64(in[i]), int64(out[i])
		lacks := n * n // quant.Stats.Drift
		if i%2 == 1 {
			lacks = n * o // or Shortfall
		}
		group = max(group, 4*(n*n+(streams-1)*lacks)+method.Memory(out[i], in[i]))
		all += 4 * n * n
		largest = max(largest, 4*n*n)
	}
	const trial = 3 // a scaled Hessian and its factor, and the next Hessian
	switch {
	case method.Needs().Trials:
		group = max(group, all+trial*largest) + 4*m.LayerWeights()
	case len(p.Recipe.transforms()) > 0: // the layer is decoded as a whole
		group += 4 * m.LayerWeights()
	}
	if t := p.Lookup(outputName); t != nil && t.Type.Grid != nil { // quantized a part at a time
		rows := min(t.Rows(), max(1, batchWeights/m.Dim))
		group = max(group, 4*streams*int64(m.Dim)*int64(m.Dim)+method.Memory(rows, m.Dim))
	}
	var states int64
	left := newStateBudget(budget)
	for _, dim := range []int{m.Dim, q, m.Dim}[:1+streams] { // in the order of layers
		bytes := stateBytes(tokens, dim)
		if !left.fits(bytes) {
			needs.Disk += bytes
			bytes = stateBytes(min(tokens, batchTokens), dim)
		}
		states += bytes
	}
	stage := streams*int64(m.Dim+m.FFN) + int64(q+2*kv+2*m.FFN+m.Dim)
	needs.Memory = max(needs.Memory, states+group+4*stage*int64(min(tokens, batchTokens)))
	if p.Assignment != nil {
		needs.Memory = max(needs.Memory, p.Assignment.memory(m, budget))
	}
	return needs
}

const pieceBytes = 4 * (1 + pendingWrites) // a weight stored in four bytes, once being made and then on its way to the disk
