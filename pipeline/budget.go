package pipeline

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/internal/knapsack"
	"github.com/llmq/llmq/model"
)

// Budget bounds a file. The zero value does not.
type Budget struct {
	MaxBytes int64   // of the whole file; 0: no bound
	MaxBPW   float64 // bits per weight of its tensors; 0: no bound
}

// Assignment is how a budget was spent. The JSON names are part of the command line's interface.
type Assignment struct {
	MaxBytes      int64   `json:"max_bytes"` // 0: no bound
	MaxBPW        float64 `json:"max_bits_per_weight"`
	Bytes         int64   `json:"bytes"` // of the file
	BitsPerWeight float64 `json:"bits_per_weight"`
	SlackBytes    int64   `json:"slack_bytes"` // what the tighter bound leaves
	// PredictedKL is the sum of the tensors' predictions, and no assignment within the budget has one below Bound. They
	// are equal unless the search ran out of room.
	PredictedKL float64 `json:"predicted_kl"`
	Bound       float64 `json:"predicted_kl_bound"`
	// Tokens is on how many of the calibration text's the sensitivities were measured.
	Tokens  int              `json:"sensitivity_tokens"`
	Seconds float64          `json:"seconds"`
	Tensors []AssignedTensor `json:"tensors"`
}

// AssignedTensor is a tensor whose type the budget decided.
type AssignedTensor struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Bytes int64  `json:"bytes"`
	// Sensitivity is the KL divergence that a relative output error of one would cause: that of a small error, scaled.
	// A head that is the embedding too has both's sum.
	Sensitivity float64 `json:"sensitivity"`
	PredictedKL float64 `json:"predicted_kl"`
}

// Assign returns p with types for the tensors that the recipe leaves open, the layers' linears, embedding and head without a rule or a
// type of their own: those of formats/ggml with which the KL divergence to the original model is predicted to be least within
// a budget. The plan's Assignment says how. It takes calibration text, in opt.Calib. Hidden states beyond opt.Memory go to a
// temporary file in tempDir ("": the system's).
//
// A small error of a tensor changes the predictions by a KL divergence that is quadratic in it. So each tensor's effect
// is measured once, with a probe in its place (eval.Sensitivity), and scaled by the output error that each type leaves
// (see use): ΔKL(type) = ΔKL(probe) · error(type) / error(probe). Effects are taken to add up. What is least then is a
// multiple-choice knapsack.
func Assign(ctx context.Context, src Source, p *Plan, b Budget, tempDir string, opt Options) (*Plan, error) {
	start := time.Now()
	if opt.Calib == nil {
		return nil, fmt.Errorf("assigning types within a budget takes calibration text")
	}
	if m := p.Recipe.Method; m.Needs().Int8Inputs {
		return nil, fmt.Errorf("method %s has Q8_0 weights: a budget has no types to choose", m.Name())
	}
	if opt.Progress == nil {
		opt.Progress = silent{}
	}
	m, err := arch.Open(src)
	if err != nil {
		return nil, err
	}
	assigned := *p
	assigned.Tensors = slices.Clone(p.Tensors)
	p = &assigned
	a := &assigner{ctx: ctx, src: src, m: m, plan: p, opt: opt, tempDir: tempDir, uses: map[string]*use{}}
	if opt.Work != nil {
		a.kept = newKeeper(opt.Work, src.Name(), "", &p.Recipe, 0)
	}
	if err := a.open(); err != nil {
		return nil, err
	}
	room, err := a.room(b)
	if err != nil {
		return nil, err
	}
	tokens, err := a.measurements()
	if err != nil {
		return nil, err
	}
	s, ok := knapsack.Solve(a.choices(), room)
	if !ok {
		return nil, fmt.Errorf("%s: no types fit the budget whose errors are finite", src.Name())
	}
	rep := &Assignment{
		MaxBytes: b.MaxBytes, MaxBPW: b.MaxBPW, SlackBytes: room - s.Bytes, PredictedKL: s.Loss, Bound: s.Bound, Tokens: tokens,
	}
	for i, o := range a.tensors {
		typ := o.types[s.Picks[i]]
		o.tensor.Type, o.tensor.Wanted = typ, typ
		t := AssignedTensor{Name: o.tensor.Name, Type: typ.Name, Bytes: o.tensor.Bytes(), PredictedKL: o.loss(s.Picks[i])}
		for _, u := range o.uses {
			t.Sensitivity += u.sensitivity()
		}
		rep.Tensors = append(rep.Tensors, t)
	}
	if p, err = p.With(gguf.Metadata{{Key: "general.file_type", Value: fileType(p.mainType())}}); err != nil {
		return nil, err
	}
	rep.Bytes, rep.BitsPerWeight = p.File.Size(), p.BitsPerWeight()
	rep.Seconds = time.Since(start).Seconds()
	p.Assignment = rep
	return p, nil
}

// assigner measures what types do to tensors.
type assigner struct {
	ctx     context.Context
	src     Source
	m       *model.Model
	plan    *Plan
	opt     Options
	tempDir string
	padded  bool // sizes count padding
	tensors []*openTensor
	uses    map[string]*use // by the names of eval.Replacement
	order   []*use          // in that of tensors
	kept    *keeper         // nil without Options.Work
}

// openTensor is a tensor whose type is to be chosen.
type openTensor struct {
	tensor *Tensor
	types  []*ggml.Type
	uses   []*use // two of an embedding that is the head too
}

// loss predicts the KL divergence that a type causes.
func (o *openTensor) loss(k int) float64 {
	var sum float64
	for _, u := range o.uses {
		sum += u.sensitivity() * u.errors[k]
	}
	return sum
}

func (o *openTensor) dropInfinite() {
	for k := len(o.types) - 1; k >= 0; k-- {
		if !slices.ContainsFunc(o.uses, func(u *use) bool { return math.IsInf(u.errors[k], 1) }) {
			continue
		}
		o.types = slices.Delete(slices.Clone(o.types), k, k+1)
		for _, u := range o.uses {
			u.errors = slices.Delete(u.errors, k, k+1)
		}
	}
}

// open lists the tensors that the recipe leaves open, with the types whose blocks divide their columns.
func (a *assigner) open() error {
	r := &a.plan.Recipe
	for i := range a.plan.Tensors {
		t := &a.plan.Tensors[i]
		_, _, rule, err := r.typeOf(&t.Info, t.Role)
		if err != nil {
			return err
		}
		var sites []string
		switch {
		case rule >= 0:
		case t.Role == model.RoleVector, t.Role == model.RoleKept, t.Role == model.RoleUnused:
		case t.Name == embeddingName && r.Embedding == nil:
			sites = []string{eval.Embedding}
			if a.m.Tied {
				sites = append(sites, eval.Head)
			}
		case t.Name == outputName && r.Output == nil:
			sites = []string{eval.Head}
		case t.Role == model.RoleLinear:
			sites = []string{t.Name}
		}
		if sites == nil {
			continue
		}
		o := &openTensor{tensor: t}
		for _, typ := range ggml.Types {
			if !typ.ByRequest && t.Cols()%typ.BlockLen == 0 {
				o.types = append(o.types, typ)
			}
		}
		for _, site := range sites {
			u := &use{site: site, tensor: t, types: o.types}
			o.uses = append(o.uses, u)
			a.order = append(a.order, u)
			a.uses[site] = u
		}
		a.tensors = append(a.tensors, o)
	}
	if len(a.tensors) == 0 {
		return fmt.Errorf("the recipe gives every tensor a type: a budget has none to choose")
	}
	return nil
}

// bytes is the room that a tensor takes as type typ: in a file with its padding.
func (a *assigner) bytes(o *openTensor, typ *ggml.Type) int64 {
	info := o.tensor.Info
	info.Type = typ
	if a.padded {
		return a.plan.File.Padded(info.Bytes())
	}
	return info.Bytes()
}

// room returns the bytes that a budget leaves for the open tensors, and refuses one that is too small for any types.
func (a *assigner) room(b Budget) (int64, error) {
	a.padded = b.MaxBytes > 0
	file, data, smallest := a.plan.File.Size(), int64(0), int64(0) // of the first two, what is not open
	for i := range a.plan.Tensors {
		data += a.plan.Tensors[i].Bytes()
	}
	for _, o := range a.tensors {
		file -= a.plan.File.Padded(o.tensor.Bytes())
		data -= o.tensor.Bytes()
		least := a.bytes(o, o.types[0])
		for _, typ := range o.types {
			least = min(least, a.bytes(o, typ))
		}
		smallest += least
	}
	if n := a.plan.Recipe.PartBytes; n > 0 && b.MaxBytes > 0 {
		// Other types fill other parts. Two that follow each other hold more than n bytes.
		parts := min(2*(b.MaxBytes/n)+1, int64(len(a.plan.Tensors)))
		file += max(0, parts+1-int64(len(a.plan.File.Parts()))) * a.plan.File.PartOverhead()
	}
	room := int64(math.MaxInt64)
	if b.MaxBytes > 0 {
		room = b.MaxBytes - file
		if room < smallest {
			return 0, fmt.Errorf("a file of at most %d bytes cannot be: the smallest types make it %d", b.MaxBytes, file+smallest)
		}
	}
	if b.MaxBPW > 0 {
		elements := float64(a.plan.Elements())
		room = min(room, int64(min(b.MaxBPW*elements/8, math.MaxInt64/2))-data)
		if room < smallest {
			return 0, fmt.Errorf("at most %g bits per weight cannot be: the smallest types make it %.4f", b.MaxBPW,
				math.Ceil(1e4*8*float64(data+smallest)/elements)/1e4)
		}
	}
	return room, nil
}

// choices are what the solver chooses from. Types that cannot hold a tensor's weights are no longer among its types; the
// checkpoint's own always is.
func (a *assigner) choices() [][]knapsack.Choice {
	groups := make([][]knapsack.Choice, len(a.tensors))
	for i, o := range a.tensors {
		o.dropInfinite()
		for k, typ := range o.types {
			groups[i] = append(groups[i], knapsack.Choice{Bytes: a.bytes(o, typ), Loss: o.loss(k)})
		}
	}
	return groups
}
