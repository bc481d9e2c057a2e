package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/engine"
	"github.com/llmq/llmq/imatrix"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/store"
)

// Options says how to carry out a plan. The zero value is the default.
type Options struct {
	// Calib is the text that methods are calibrated on; nil: none, for methods that do without.
	Calib *calib.Set
	// Imatrix, where not nil, has the importance of inputs in the place of calibration text, by which rounding to nearest searches
	// scales: see Plan.WithImatrix. Methods that calibrate do not go by it.
	Imatrix *imatrix.Matrix
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
	// Speeds are those of this machine, which Progress is told by how long the run takes; nil: they are not known. Nothing else goes by them.
	Speeds *Speeds
	// Work keeps what is done, so that the same run goes on there after it was cut off: nil keeps nothing. It belongs to this
	// run alone (WorkParts).
	Work Work
	// Engine hands the layers' work out, to Workers of the same Work; nil: Run does it.
	Engine engine.Engine
}

// Progress is told what a run does; internal/ui shows it.
type Progress interface {
	Stage(name string, total int64) // total is in weights, or in what else should take even time
	Expect(d time.Duration)         // that the stage takes
	Skip(n int64)                   // of total need not be done
	Item(name string)
	Detail(name string)
	Add(n int64)
	Done()
}

type silent struct{}

func (silent) Stage(string, int64)  {}
func (silent) Expect(time.Duration) {}
func (silent) Skip(int64)           {}
func (silent) Item(string)          {}
func (silent) Detail(string)        {}
func (silent) Add(int64)            {}
func (silent) Done()                {}

// Report is what a run has done. The JSON names are part of the command line's interface.
type Report struct {
	// Plan is the one that was carried out: the caller's, or one with Q8_0 for some linears.
	Plan          *Plan          `json:"-"`
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
	// OutputHessian is nil where there is none.
	OutputHessian *OutputReport `json:"output_hessian"`
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
	// Wanted names the type that was asked for where its block does not divide the columns.
	Wanted string `json:"fallback"`
	// RequantizedFrom is the quantized type that the checkpoint has, whose errors the others do not count; "" for an original,
	// and for what was copied as it is.
	RequantizedFrom string `json:"requantized_from"`
	// Lossless: the checkpoint's weights lie on the type's grid and were copied code by code; the errors are 0. What the file
	// decodes to is what the checkpoint stores, but for how its type rounded that.
	Lossless bool `json:"lossless"`
	// ExpertTokens are how many calibration tokens reached each of the experts that the tensor holds.
	ExpertTokens []int `json:"expert_tokens,omitempty"`

	rounding float64 // output error of rounding alone, without what corrected the weight first; for Options.Fallback
}

// task is what an attempt goes by. None of it changes, but for work.
type task struct {
	ctx     context.Context
	src     Source
	m       *model.Model // nil: nothing is calibrated
	plan    *Plan
	opt     Options
	tempDir string
	kept    *keeper // nil without Options.Work
	work    work
}

// outcome is how an attempt to carry out a plan ended: done, redo or refused.
type outcome interface{ outcome() }

// done: the file has its name.
type done struct{ report *Report }

// redo: linears need another type, and all of this plan is to be done instead.
type redo struct{ plan *Plan }

// refused: the file is not good enough, and no other plan is left to try.
type refused struct{ limit *LimitError }

func (done) outcome()    {}
func (redo) outcome()    {}
func (refused) outcome() {}

// Run writes the file that p plans to path, or its parts beside it (gguf.Plan.Paths). p stays as it is: where linears fall
// back to Q8_0, the report has the plan that was carried out. Nothing is left at path, and an existing file is untouched, if
// it fails.
func Run(ctx context.Context, src Source, p *Plan, path string, opt Options) (*Report, error) {
	if why, ok := p.Recipe.Calibrated(); ok && opt.Calib == nil {
		return nil, fmt.Errorf("%s needs calibration text: give some with --calib FILE", why)
	}
	if p.Recipe.KeepCodes && opt.Calib != nil {
		return nil, errors.New("a plan that keeps the checkpoint's codes cannot be calibrated")
	}
	if opt.Imatrix != nil && opt.Calib != nil {
		return nil, fmt.Errorf("an importance matrix stands in the place of calibration text: give one of them")
	}
	if opt.Progress == nil {
		opt.Progress = silent{}
	}
	if err := p.checkForm(&opt); err != nil {
		return nil, err
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
	defer func() { found.outputs.close() }()
	for n := 1; ; n++ {
		t := &task{ctx: ctx, src: src, plan: p, opt: opt, tempDir: filepath.Dir(path)}
		if err := t.checkEngine(); err != nil {
			return nil, err
		}
		if opt.Work != nil {
			t.kept = newKeeper(opt.Work, src.Name(), path, &p.Recipe, n)
		}
		o, more, err := t.attemptOnce(path, found)
		if err != nil {
			return nil, cmp.Or(model.Unchanged(src), damaged(src, err), err) // the one may be why the other is
		}
		// What the budget refused in an earlier attempt, a later one judges again.
		fallbacks = slices.DeleteFunc(fallbacks, func(f FallbackReport) bool { return !f.Done })
		fallbacks = append(fallbacks, more...)
		complete := func(rep *Report) {
			rep.Seconds, rep.Int8Fallbacks = time.Since(start).Seconds(), fallbacks
		}
		switch o := o.(type) {
		case redo:
			p = o.plan
		case refused:
			complete(o.limit.Report)
			return nil, errors.Join(o.limit, t.kept.end())
		case done:
			complete(o.report)
			return o.report, t.kept.end()
		}
	}
}

// attempt writes the file that the plan describes. found has what attempts find out and later ones need not.
func (t *task) attempt(path string, found *findings) (outcome, []FallbackReport, error) {
	var err error
	if t.opt.Calib != nil {
		if t.m, err = arch.Open(t.src); err != nil {
			return nil, nil, err
		}
	}
	w, err := newWriter(t, path)
	if err != nil {
		return nil, nil, err
	}
	defer w.file.Abort() // no effect after Close
	if err := t.kept.room(t, found); err != nil {
		return nil, nil, err
	}
	pass := &passage{task: t, out: w, scaled: &transformer{task: t}, found: found}
	if t.plan.Recipe.Method.Needs().Int8Inputs || t.mayFallBack() {
		pass.seen = newObserver()
	}
	t.begin(t.stageName(len(found.runs)))
	if err := w.convertAll(); err != nil {
		return nil, nil, err
	}
	if t.m != nil {
		if err := pass.layers(); err != nil {
			return nil, nil, err
		}
		if err := w.convertHead(); err != nil {
			return nil, nil, err
		}
	}
	if err := t.ctx.Err(); err != nil {
		return nil, nil, err
	}
	fallbacks, next, err := t.fallBack(w.reports, pass.seen)
	if err != nil || next != nil {
		return redo{next}, fallbacks, err
	}
	if err := w.setMetadata(pass.seen); err != nil {
		return nil, nil, err
	}
	report := func(paths []string) *Report {
		return t.report(w, pass.scaled, found, paths)
	}
	if len(t.opt.Validate.Tokens) > 0 {
		if err := t.kept.note(store.PhaseValidate); err != nil {
			return nil, nil, err
		}
		if err := t.validate(w, found); err != nil {
			return nil, nil, err
		}
		if !found.validation.Met {
			if fallbacks, next, err = t.relieve(w.reports, pass.seen, found); err != nil || next != nil {
				return redo{next}, fallbacks, err
			}
			return refused{newLimitError(report(nil))}, fallbacks, nil
		}
		if err := w.setDivergence(found.validation); err != nil {
			return nil, nil, err
		}
	}
	if err := model.Unchanged(t.src); err != nil {
		return nil, nil, err
	}
	if src := model.PassingOf(t.src); src != nil {
		if err := src.Check(); err != nil {
			return nil, nil, err
		}
	}
	if err := t.kept.note(store.PhaseFinish); err != nil {
		return nil, nil, err
	}
	if err := w.file.Close(); err != nil {
		return nil, nil, err
	}
	t.opt.Progress.Done()
	return done{report(w.file.Paths())}, fallbacks, nil
}

// stageName tells a user what the next attempt does, after so many that have been validated.
func (t *task) stageName(runs int) string {
	name := "quantize"
	if t.plan.Recipe.Type.Grid == nil {
		name = "convert"
	}
	if runs > 0 {
		name = fmt.Sprintf("run %d: %s", runs+1, name)
	}
	return name
}

// report tells of an attempt whose tensors are all written, to files of these names; none if they were given up.
func (t *task) report(w *writer, scaled *transformer, found *findings, paths []string) *Report {
	p := t.plan
	rep := &Report{
		Plan: p, Parts: []string{}, Bytes: p.Size(), BitsPerWeight: p.BitsPerWeight(),
		Foldings: append([]quant.Folding{}, scaled.foldings...), Ranges: append([]GroupRanges{}, scaled.ranges...),
		NoBias: append([]string{}, p.NoBias...), Assignment: p.Assignment,
		Decisions: append([]Decision{}, found.decisions...), Validation: found.validation,
		OutputHessian: found.outputs.report(),
	}
	if len(paths) > 0 {
		rep.Output = paths[0]
	}
	if len(paths) > 1 {
		rep.Parts = paths
	}
	for i := range p.Tensors {
		rep.Tensors = append(rep.Tensors, *w.reports[p.Tensors[i].Name])
	}
	return rep
}
