package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"github.com/llmq/llmq/arch"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Options says how to carry out a plan. The zero value is the default.
type Options struct {
	// Calib is the text that methods are calibrated on; nil: none, for methods that do without.
	Calib *calib.Set
	// NoCorrection quantizes the original weights. By default GPTQ first corrects each weight for the errors of
	// everything quantized before it (gptq.Factor.Correct), and bias correction makes up for them, which takes a second
	// forward pass of the original model.
	NoCorrection bool
	// Memory bounds the bytes of hidden states kept in memory; more goes to a temporary file beside the output. 0: no
	// bound.
	Memory    int64
	Fallback  Fallback
	Validate  Validate
	Overwrite bool
	Progress  Progress // may be nil
}

// Progress is told what a run does; internal/ui shows it.
type Progress interface {
	Stage(name string, total int64) // total is in weights
	Item(name string)
	Detail(name string)
	Add(n int64)
	Done()
}

type silent struct{}

func (silent) Stage(string, int64) {}
func (silent) Item(string)         {}
func (silent) Detail(string)       {}
func (silent) Add(int64)           {}
func (silent) Done()               {}

// Report is what a run has done. The JSON names are part of the command line's interface.
type Report struct {
	Output        string         `json:"output"` // the first part, of a split file
	Parts         []string       `json:"parts"`  // of a split file; empty if there is one
	Bytes         int64          `json:"bytes"`
	BitsPerWeight float64        `json:"bits_per_weight"`
	Seconds       float64        `json:"seconds"`
	Tensors       []TensorReport `json:"tensors"`
	// Int8Fallbacks are the linears past Options.Fallback's error, in the order of its decisions.
	Int8Fallbacks []FallbackReport `json:"int8_fallbacks"`
	// Decisions are what the method Auto found for each group, in order; empty for other methods.
	Decisions []Decision `json:"decisions"`
	// Validation is nil without Options.Validate.
	Validation *Validation `json:"validation"`
	// Foldings are what the transforms did to each group, in order; empty without a transform.
	Foldings []quant.Folding `json:"foldings"`
	// Ranges are those of each group before and after the transforms; empty without a transform.
	Ranges []GroupRanges `json:"ranges"`
	// NoBias names the quantized linears that bias correction left alone, as GGUF readers load no bias for them.
	NoBias []string `json:"no_bias"`
	// Assignment is that of the plan.
	Assignment *Assignment `json:"assignment"`
}

// TensorReport is what became of one tensor.
type TensorReport struct {
	Name  string `json:"name"`
	Type  string `json:"type"`
	Bytes int64  `json:"bytes"`
	// RelativeError is ‖XΔWᵀ‖²/‖XWᵀ‖² on the calibration tokens; without calibration ‖ΔW‖²/‖W‖².
	RelativeError float64 `json:"relative_error"`
	// WeightError is ‖ΔW‖²/‖W‖², and ExpectedError what rounding to nearest makes of it if values are spread evenly
	// between codes: ΣΔ²/12 over ‖W‖², Δ being the distance of codes (quant.Weight.Noise). Both take W as it was rounded,
	// after corrections. ExpectedError is 0 for floating-point types.
	WeightError   float64 `json:"weight_error"`
	ExpectedError float64 `json:"expected_error"`
	// Damping is the share of the mean Hessian diagonal that GPTQ added; 0 where it did not run.
	Damping float64 `json:"damping"`
	// Fallback names the type that was asked for where its block does not divide the columns.
	Fallback string `json:"fallback"`
	// RequantizedFrom is the quantized type that the checkpoint has, whose errors the others do not count; "" for an original,
	// and for what was copied as it is.
	RequantizedFrom string `json:"requantized_from"`
	// ExpertTokens are how many calibration tokens reached each of the experts that the tensor holds.
	ExpertTokens []int `json:"expert_tokens,omitempty"`

	rounding float64 // output error of rounding alone, without what corrected the weight first; for Options.Fallback
}

type run struct {
	ctx  context.Context
	src  Source
	m    *model.Model
	plan *Plan
	opt  Options
	out  *gguf.Writer

	inputs map[string]*inputs // by linear; nil if nobody asks for them
	groups []*inputs          // in the order of the forward pass

	writes  *errgroup.Group // batches of convert on their way to the disk, pendingWrites at most
	writing context.Context // ends with the first that fails
	buffers chan []byte     // what they leave

	mu      sync.Mutex // guards reports
	reports map[string]*TensorReport
	sums    map[string]*linearSums // of the layers' linears
	// expertTokens are by tensor, then expert.
	expertTokens map[string][]int

	foldings []quant.Folding
	ranges   []GroupRanges
	scales   map[string][]float32 // of the inputs, by the first linear of the group
	found    *findings
	tempDir  string
}

// Run writes the file that p plans to path, or its parts beside it (gguf.Plan.Paths); linears that fall back to Q8_0 change p.
// Nothing is left there, and an existing file is untouched, if it fails.
func Run(ctx context.Context, src Source, p *Plan, path string, opt Options) (*Report, error) {
	if why, ok := p.Recipe.Calibrated(); ok && opt.Calib == nil {
		return nil, fmt.Errorf("%s needs calibration text: give some with --calib FILE", why)
	}
	if opt.Progress == nil {
		opt.Progress = silent{}
	}
	if err := opt.Fallback.check(p, opt.Calib != nil); err != nil {
		return nil, err
	}
	if err := opt.Validate.check(opt.Calib); err != nil {
		return nil, err
	}
	start := time.Now()
	fallbacks := []FallbackReport{}
	found := newFindings()
	for {
		rep, more, err := attempt(ctx, src, p, path, opt, found)
		// What the budget refused in an earlier attempt, a later one judges again.
		fallbacks = slices.DeleteFunc(fallbacks, func(f FallbackReport) bool { return !f.Done })
		fallbacks = append(fallbacks, more...)
		if rep != nil {
			rep.Seconds, rep.Int8Fallbacks = time.Since(start).Seconds(), fallbacks
			if err == nil {
				return rep, nil
			}
		}
		if err != nil {
			return nil, err
		}
	}
}

// attempt writes the file that p plans, or gives up in the end because linears fall back to Q8_0: the report is nil then,
// and p changed.
func attempt(ctx context.Context, src Source, p *Plan, path string, opt Options, found *findings) (*Report, []FallbackReport, error) {
	r := &run{ctx: ctx, src: src, plan: p, opt: opt, reports: map[string]*TensorReport{}, found: found,
		sums: map[string]*linearSums{}, expertTokens: map[string][]int{}, tempDir: filepath.Dir(path), buffers: make(chan []byte, pendingWrites+1)}
	r.writes, r.writing = errgroup.WithContext(ctx)
	r.writes.SetLimit(pendingWrites)
	var err error
	if opt.Calib != nil {
		if r.m, err = arch.Open(src); err != nil {
			return nil, nil, err
		}
	}
	if p.Recipe.Method.Needs().Int8Inputs || r.mayFallBack() {
		r.inputs = map[string]*inputs{}
	}
	if r.out, err = gguf.Create(path, p.Metadata, p.infos(), gguf.Options{Overwrite: opt.Overwrite,
		PartBytes: p.Recipe.PartBytes}); err != nil {
		return nil, nil, err
	}
	defer r.out.Abort() // no effect after Close
	stage := "quantize"
	if p.Recipe.Type.Grid == nil {
		stage = "convert"
	}
	if n := len(found.runs); n > 0 {
		stage = fmt.Sprintf("run %d: %s", n+1, stage)
	}
	opt.Progress.Stage(stage, p.Elements())
	if err := r.tensors(); err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	fallbacks, redo, err := r.fallBack()
	if err != nil || redo {
		return nil, fallbacks, err
	}
	if p.Recipe.Method.Needs().Int8Inputs {
		if err := r.setScales(r.out); err != nil {
			return nil, nil, err
		}
	}
	if _, ok := p.Metadata.Get(model.ErrorsKey); ok {
		if err := r.setErrors(); err != nil {
			return nil, nil, err
		}
	}
	if len(opt.Validate.Tokens) > 0 {
		if err := r.validate(); err != nil {
			return nil, nil, err
		}
		if !found.validation.Met {
			if fallbacks, redo, err = r.relieve(); err != nil || redo {
				return nil, fallbacks, err
			}
			e := r.limitError()
			return e.Report, fallbacks, e
		}
	}
	if err := r.out.Close(); err != nil {
		return nil, nil, err
	}
	opt.Progress.Done()
	return r.result(r.out.Paths()), fallbacks, nil
}

// setErrors stores the relative errors of the tensors in the metadata, so that a file tells where it is weak.
func (r *run) setErrors() error {
	errors := make([]float32, len(r.plan.Tensors))
	for i := range errors {
		errors[i] = float32(r.reports[r.plan.Tensors[i].Name].RelativeError)
	}
	return r.out.SetMeta(model.ErrorsKey, errors)
}

// result reports a run whose tensors are all written, to files of these names; none if they were given up.
func (r *run) result(paths []string) *Report {
	rep := &Report{
		Parts: []string{}, Bytes: r.plan.File.Size(), BitsPerWeight: r.plan.BitsPerWeight(),
		Foldings: append([]quant.Folding{}, r.foldings...), Ranges: append([]GroupRanges{}, r.ranges...),
		NoBias: append([]string{}, r.plan.NoBias...), Assignment: r.plan.Assignment,
		Decisions: append([]Decision{}, r.found.decisions...), Validation: r.found.validation,
	}
	if len(paths) > 0 {
		rep.Output = paths[0]
	}
	if len(paths) > 1 {
		rep.Parts = paths
	}
	for i := range r.plan.Tensors {
		rep.Tensors = append(rep.Tensors, *r.reports[r.plan.Tensors[i].Name])
	}
	return rep
}

// tensors writes all tensors: the layers' linears as calibration reaches them, the others one after the other.
func (r *run) tensors() error {
	var converted []*Tensor
	for i := range r.plan.Tensors {
		t := &r.plan.Tensors[i]
		inLayer := ggml.ParseName(t.Name).Layer >= 0
		if r.m != nil && (t.Role == model.RoleLinear || r.changesVectors() && t.Role == model.RoleVector && inLayer) ||
			t.Role == model.RoleHead && r.calibratesHead() {
			continue
		}
		converted = append(converted, t)
	}
	item := ""
	for i, t := range converted {
		if i+1 < len(converted) && 4*converted[i+1].Elements() <= readAheadBytes {
			r.src.ReadAhead(converted[i+1].Name)
		}
		if name := itemName(t.Name); name != item && r.m == nil {
			item = name
			r.opt.Progress.Item(item)
		}
		if err := r.convert(t); err != nil {
			return cmp.Or(r.writes.Wait(), err)
		}
	}
	if err := r.writes.Wait(); err != nil {
		return err
	}
	if r.m != nil {
		return r.layers()
	}
	return nil
}

// itemName is "blk.N" for a layer's tensor, else the tensor's name.
func itemName(tensor string) string {
	if n := ggml.ParseName(tensor); n.Layer >= 0 {
		return fmt.Sprintf("blk.%d", n.Layer)
	}
	return tensor
}

// linearSums gathers what is reported of a linear, over the experts that its tensor holds.
type linearSums struct {
	outputs, rounding, weights errorSum
	noise, damping             float64
}

// quantized adds to a linear's report what became of w, the weights that lin had, and what rounding alone did to q.target.
func (r *run) quantized(t *Tensor, lin *model.Linear, w *tensor.Matrix, q *rounding, in *quant.Stats) {
	var one linearSums
	one.outputs.num, one.outputs.den = quant.OutputEnergies(w, q.decoded, in.H)
	one.weights.add(q.target, q.decoded)
	one.noise, one.damping = roundingNoise(t.Type, q.data, q.target), q.damping
	if r.mayFallBack() {
		one.rounding.num, one.rounding.den = quant.OutputEnergies(q.target, q.decoded, in.H)
	}
	r.mu.Lock()
	sums := r.sums[t.Name]
	if sums == nil {
		sums = &linearSums{}
		r.sums[t.Name] = sums
	}
	sums.add(&one)
	r.mu.Unlock()
	r.opt.Progress.Add(int64(w.Rows) * int64(w.Cols))
	if lin.First()+lin.Out < t.Rows() {
		return
	}
	r.opt.Progress.Detail(ggml.ParseName(t.Name).Stem)
	r.report(t, sums.outputs.relative(), sums.damping)
	r.mu.Lock()
	defer r.mu.Unlock()
	rep := r.reports[t.Name]
	rep.WeightError, rep.ExpectedError = sums.weights.relative(), errorSum{sums.noise, sums.weights.den}.relative()
	rep.rounding, rep.ExpertTokens = sums.rounding.relative(), r.expertTokens[t.Name]
}

func (s *linearSums) add(o *linearSums) {
	for _, p := range [][2]*errorSum{{&s.outputs, &o.outputs}, {&s.rounding, &o.rounding}, {&s.weights, &o.weights}} {
		p[0].num += p[1].num
		p[0].den += p[1].den
	}
	s.noise += o.noise
	s.damping = max(s.damping, o.damping)
}

// roundingNoise estimates ‖ΔW‖² of weights stored as data.
func roundingNoise(t *ggml.Type, data []byte, w *tensor.Matrix) float64 {
	if t.Grid == nil {
		return 0
	}
	return t.ParseWeight(data, w.Rows, w.Cols).Noise()
}

// done reports a linear of a layer.
func (r *run) done(t *Tensor, relative, damping float64) {
	r.report(t, relative, damping)
	r.opt.Progress.Add(int64(t.Elements()))
	r.opt.Progress.Detail(ggml.ParseName(t.Name).Stem)
}

func (r *run) report(t *Tensor, relative, damping float64) {
	rep := &TensorReport{
		Name: t.Name, Type: t.Type.Name, Bytes: t.Bytes(), RelativeError: relative, Damping: damping,
	}
	if t.Wanted != t.Type {
		rep.Fallback = t.Wanted.Name
	}
	if t.From.Grid != nil && !isOriginal(r.src) {
		rep.RequantizedFrom = t.From.Name
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports[t.Name] = rep
}

// check refuses weights that are not finite or that t's type would make infinite.
func (r *run) check(t *Tensor, w *tensor.Matrix) error {
	for i := range w.Rows {
		for j, v := range w.Row(i) {
			if err := r.checkWeight(t, i, j, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkWeight refuses t's element v at [row col].
func (r *run) checkWeight(t *Tensor, row, col int, v float32) error {
	const maxFloat16 = 65504
	finite := v-v == 0
	if finite && (t.Type != ggml.F16 || math.Abs(float64(v)) <= maxFloat16) {
		return nil
	}
	where := fmt.Sprintf("[%d %d]", row, col)
	if len(t.Shape) == 1 {
		where = fmt.Sprint(col)
	}
	where = fmt.Sprintf("%s: tensor %q: element %s is %v", r.src.Name(), t.Name, where, v)
	if finite {
		return fmt.Errorf("%s, beyond F16's largest value %d: choose bf16 or f32 for this tensor", where, maxFloat16)
	}
	return errors.New(where)
}

// encode rounds w to nearest. It returns the bytes and the values that a reader will see.
func encode(t *ggml.Type, w *tensor.Matrix, importance []float32) (data []byte, decoded *tensor.Matrix) {
	row := t.RowBytes(w.Cols)
	data = make([]byte, w.Rows*row)
	decoded = tensor.New(w.Rows, w.Cols)
	kernels.Parallel(w.Rows, 4, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			t.Encode(data[i*row:(i+1)*row], w.Row(i), importance)
			t.Decode(decoded.Row(i), data[i*row:(i+1)*row])
		}
	})
	return data, decoded
}

// errorSum gathers ‖ΔW‖² and ‖W‖² over pieces of a tensor.
type errorSum struct{ num, den float64 }

func (s *errorSum) add(w, decoded *tensor.Matrix) {
	for i := range w.Rows {
		d := decoded.Row(i)
		for j, v := range w.Row(i) {
			e := float64(v) - float64(d[j])
			s.num += e * e
			s.den += float64(v) * float64(v)
		}
	}
}

func (s errorSum) relative() float64 {
	if s.den == 0 {
		return min(s.num, 1)
	}
	return s.num / s.den
}
