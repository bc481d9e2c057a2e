// Package profile measures what quantizing a model has to deal with: how the weights and the inputs of each linear are
// distributed, how much each loses to rounding and how much that matters, and what follows from it.
package profile

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tensor"
)

// Options says how to profile. The zero value is the default but for Type.
type Options struct {
	// Type is the block type that sensitivity is measured for, by rounding to nearest; required.
	Type *ggml.Type
	// FallbackError is the relative output error from which a linear is listed for fallback. 0: FallbackFactor times the
	// median of all linears.
	FallbackError float64
	// HeldOut is a text, as tokens, on which the KL divergence is measured that quantizing one linear alone causes: for
	// the KLLinears linears with the largest output errors, all if negative.
	HeldOut   []int32
	KLLinears int
	// Eval says how HeldOut is read: Context, Chunks, BOS, Memory and TempDir.
	Eval eval.Options
	// Memory bounds the bytes of hidden states kept in memory; more goes to a temporary file in TempDir ("": the
	// system's). 0: no bound.
	Memory   int64
	TempDir  string
	Progress eval.Progress // may be nil
	// Work keeps what is known of each layer, and the hidden states behind it, so that Run goes on there; nil: it keeps nothing.
	Work eval.Work
}

// Profile is what was measured. The JSON names are part of the command line's interface.
type Profile struct {
	Model       string      `json:"model"`
	Layers      int         `json:"layers"`
	Type        string      `json:"type"` // the block type of all errors
	Calibration Calibration `json:"calibration"`
	Inputs      []Input     `json:"inputs"`  // in the order of the forward pass
	Linears     []Linear    `json:"linears"` // likewise
	Fallback    []Fallback  `json:"fallback"`
	Checklist   []Check     `json:"checklist"`
	Seconds     float64     `json:"seconds"`
}

// Calibration is the text that the inputs were observed on.
type Calibration struct {
	Sequences      int      `json:"sequences"`
	SequenceLength int      `json:"sequence_length"`
	Sources        []string `json:"sources"`
	SHA256         string   `json:"sha256"`
	Warnings       []string `json:"warnings"`
}

// Distribution describes values.
type Distribution struct {
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	MeanAbs  float64 `json:"mean_abs"`
	Kurtosis float64 `json:"kurtosis"` // 3 for a Gaussian
	// Histogram counts magnitudes in bins of equal width from 0 to HistogramRange.
	Histogram      []int64 `json:"histogram"`
	HistogramRange float64 `json:"histogram_range"`
}

// Input is what one or more linears of a layer read.
type Input struct {
	Name  string `json:"name"` // model.Site.ID: "blk.0.attn_in"
	Layer int    `json:"layer"`
	// Tokens is how many were observed: of an expert's input, those that reach it, at worst none. All else is then zero.
	Tokens int `json:"tokens"`
	Distribution
	// FeatureRange is how the features' largest magnitudes are distributed.
	FeatureRange Quantiles `json:"feature_range"`
	// OutlierFeatures are those that meet LLM.int8's criteria: a magnitude of 6 at 6% of the tokens, and, for inputs whose
	// features all layers share (model.Site.Shares), in 25% of them.
	OutlierFeatures []int     `json:"outlier_features"`
	LargestFeatures []Feature `json:"largest_features"`
	Clip            Clip      `json:"clip"`
	Stability       Stability `json:"stability"`
	Smoothing       Smoothing `json:"smoothing"`
}

// Quantiles of values.
type Quantiles struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	P99    float64 `json:"p99"`
	Max    float64 `json:"max"`
}

// Feature is one of an input's.
type Feature struct {
	Index   int     `json:"index"`
	AbsMax  float64 `json:"absmax"`
	MeanAbs float64 `json:"mean_abs"`
}

// Clip are symmetric ranges for eight bits; see calib.Histogram.
type Clip struct {
	MinMax     float64 `json:"minmax"`
	Percentile float64 `json:"percentile"` // calib.DefaultPercentile
	MSE        float64 `json:"mse"`
	Entropy    float64 `json:"entropy"`
}

// Stability says whether the ranges settled while the calibration text was read; see calib.Stability.
type Stability struct {
	Stable       bool           `json:"stable"`
	SettledAfter int            `json:"settled_after"` // sequences
	Changes      []calib.Change `json:"changes"`
}

// Linear is a weight.
type Linear struct {
	Name    string       `json:"name"` // model.Linear.ID: of an expert, its tensor's with the expert's number
	Input   string       `json:"input"`
	Type    string       `json:"type"` // another than the profile's where that does not divide the columns
	Out     int          `json:"out"`
	In      int          `json:"in"`
	Weights Distribution `json:"weights"`
	// WeightError is ‖ΔW‖²/‖W‖² and OutputError ‖XΔWᵀ‖²/‖XWᵀ‖² after rounding to nearest.
	WeightError float64 `json:"weight_error"`
	OutputError float64 `json:"output_error"`
	// KL is the divergence that quantizing this linear's tensor alone causes on the held-out text; nil where it was not
	// measured. A tensor's experts are quantized together.
	KL *KL `json:"kl_divergence"`

	tensor string
	expert int // −1: the linear is the whole tensor
	tokens int // of its input
}

// KL is a mean with its standard error.
type KL struct {
	Mean   float64 `json:"mean"`
	StdErr float64 `json:"stderr"`
}

type silent struct{}

func (silent) Stage(string, int64) {}
func (silent) Item(string)         {}
func (silent) Add(int64)           {}
func (silent) Done()               {}

// Run profiles a model on a calibration set.
func Run(ctx context.Context, src model.Source, set *calib.Set, opt Options) (*Profile, error) {
	start := time.Now()
	if opt.Progress == nil {
		opt.Progress = silent{}
	}
	m, err := arch.Open(src)
	if err != nil {
		return nil, err
	}
	m.Precision = kernels.F32
	for _, t := range src.Tensors() {
		if t.Type.Grid != nil {
			return nil, fmt.Errorf("%s: tensor %q is %s, already quantized; profile the F32, F16 or BF16 original",
				src.Name(), t.Name, t.Type.Name)
		}
	}
	r := &run{ctx: ctx, m: m, st: m.NewState(), set: set, opt: opt, importance: map[string][]float32{}}
	r.standing = store.Standing{Model: src.Name(), Type: opt.Type.Name, Phase: store.PhaseProfile, Run: 1, Layers: m.Layers(),
		LayerSeconds: []float64{}}
	r.p = &Profile{
		Model: src.Name(), Layers: m.Layers(), Type: opt.Type.Name, Fallback: []Fallback{},
		Calibration: Calibration{
			Sequences: len(set.Sequences), SequenceLength: set.SeqLen, SHA256: set.SHA256(), Sources: []string{},
			Warnings: append([]string{}, set.Warnings...),
		},
	}
	for i := range set.Sources {
		r.p.Calibration.Sources = append(r.p.Calibration.Sources, set.Sources[i].Name())
	}
	var weights int64
	for i := range m.Layers() {
		weights += m.LayerWeights(i)
	}
	opt.Progress.Stage("profile", weights*int64(set.Tokens()))
	if err := r.layers(); err != nil {
		return nil, err
	}
	opt.Progress.Done()
	r.outliers()
	if err := r.sensitivity(); err != nil {
		return nil, err
	}
	r.p.advise(opt)
	r.p.Seconds = time.Since(start).Seconds()
	return r.p, r.finishWork()
}

// tensorLinears are the linears of one tensor: one, or all of its experts.
type tensorLinears struct {
	tensor  string
	linears []*Linear
	worst   float64 // output error
}

// tensors lists the linears by tensor, in the order of the forward pass.
func (r *run) tensors() []*tensorLinears {
	var list []*tensorLinears
	byName := map[string]*tensorLinears{}
	for i := range r.p.Linears {
		l := &r.p.Linears[i]
		t := byName[l.tensor]
		if t == nil {
			t = &tensorLinears{tensor: l.tensor}
			byName[l.tensor] = t
			list = append(list, t)
		}
		t.linears = append(t.linears, l)
		t.worst = max(t.worst, l.OutputError)
	}
	return list
}

// sensitivity measures the effect on predictions of the tensors with the largest errors.
func (r *run) sensitivity() error {
	order := r.tensors()
	n := len(order)
	if r.opt.KLLinears >= 0 {
		n = min(n, r.opt.KLLinears)
	}
	if n == 0 || len(r.opt.HeldOut) == 0 {
		return nil
	}
	slices.SortStableFunc(order, func(a, b *tensorLinears) int { return cmp.Compare(b.worst, a.worst) })
	var rs []eval.Replacement
	for _, t := range order[:n] {
		next := 0 // the experts are replaced in their order
		rs = append(rs, eval.Replacement{Linear: t.tensor, Weights: func(w *tensor.Matrix) (*tensor.Matrix, error) {
			l := t.linears[next]
			next++
			return roundTrip(r.typeFor(w.Cols), w, r.importance[l.Input]), nil
		}})
	}
	opt := r.opt.Eval
	opt.Progress = r.opt.Progress
	effects, err := eval.Sensitivity(r.ctx, r.m, r.opt.HeldOut, rs, opt)
	if err != nil {
		return err
	}
	for i, e := range effects {
		for _, l := range order[i].linears {
			l.KL = &KL{e.KL, e.StdErr}
		}
	}
	return nil
}

// typeFor is the type that rows of cols columns get.
func (r *run) typeFor(cols int) *ggml.Type { return ggml.Substitute(r.opt.Type, cols) }

// roundTrip returns w as a reader of type t sees it after rounding to nearest.
func roundTrip(t *ggml.Type, w *tensor.Matrix, importance []float32) *tensor.Matrix {
	out := tensor.New(w.Rows, w.Cols)
	kernels.Parallel(w.Rows, 4, func(lo, hi int) {
		data := make([]byte, t.RowBytes(w.Cols))
		for i := lo; i < hi; i++ {
			t.Encode(data, w.Row(i), importance)
			t.Decode(out.Row(i), data)
		}
	})
	return out
}

// distribution describes what an observer has seen, if anything.
func distribution(o *calib.Observer) Distribution {
	if o.Tokens == 0 {
		return Distribution{Histogram: make([]int64, histogramBins)}
	}
	var sum float64
	for _, v := range o.MeanAbs() {
		sum += float64(v)
	}
	return Distribution{
		Min: o.Min, Max: o.Max, MeanAbs: sum / float64(len(o.AbsMax)), Kurtosis: o.Kurtosis(),
		Histogram: o.Histogram.Shrink(histogramBins), HistogramRange: o.Histogram.Range,
	}
}

// histogramBins is enough for a picture.
const histogramBins = 64

// quantiles of values, which it sorts.
func quantiles(v []float32) Quantiles {
	slices.Sort(v)
	at := func(q float64) float64 { return float64(v[int(q*float64(len(v)-1))]) }
	return Quantiles{at(0), at(0.5), at(0.99), at(1)}
}
