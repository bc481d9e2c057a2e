package pipeline

import (
	"context"
	"fmt"
	"math"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

const (
	// sampleRows of a weight, evenly spread, stand for all: their errors are close to those of the others, and sums over
	// so many are within some percent.
	sampleRows = 64
	// sampleEmbeddings is how many of the calibration text's tokens the embedding's errors are measured on, evenly spread,
	// so that frequent tokens count more.
	sampleEmbeddings = 1024
	// The effects on predictions are measured on parts of so many tokens, of sequences evenly spread, as many as make the
	// variants of the model read sensitivityPasses times what calibration reads, and at least minParts of them.
	partTokens        = 256
	minParts          = 4
	sensitivityPasses = 2
)

// probeTypes are small enough to be felt and large enough for their effect to be quadratic; most columns divide. The second
// is for weights that the first holds as they are, to minProbe: those of a checkpoint that was quantized to it.
var probeTypes = []*ggml.Type{ggml.Q4_0, ggml.Q3_K}

const minProbe = 1e-6

// use is a tensor at work: the layers' linears and the head multiply, the embedding is read.
type use struct {
	site       string // of eval.Replacement
	tensor     *Tensor
	types      []*ggml.Type
	importance []float32 // of the input's features; nil for the embedding
	probeType  *ggml.Type
	probe      float64   // relative output error of the probe
	errors     []float64 // of each type
	kl         float64   // effect of the probe
}

// sensitivity is the KL divergence per relative output error.
func (u *use) sensitivity() float64 {
	if u.probe == 0 {
		return 0
	}
	return u.kl / u.probe
}

// rounded returns w rounded to nearest as the probe.
func (u *use) rounded(w *tensor.Matrix) *tensor.Matrix {
	_, q := encode(ggml.Substitute(u.probeType, w.Cols), w, u.importance)
	return q
}

// measure notes the relative errors of the probe and of each type, which quantize rounds to and relative compares with w.
func (u *use) measure(w *tensor.Matrix, quantize func(t *Tensor) (*tensor.Matrix, error),
	relative func(w, q *tensor.Matrix) float64) error {
	for _, u.probeType = range probeTypes {
		if u.probe = relative(w, u.rounded(w)); u.probe > minProbe {
			break
		}
	}
	if math.IsNaN(u.probe) || math.IsInf(u.probe, 0) {
		return fmt.Errorf("tensor %q: its weights or its inputs overflow", u.site)
	}
	for _, t := range u.types {
		e := 0.0
		if t != u.tensor.From {
			as := *u.tensor
			as.Type = t
			q, err := quantize(&as)
			if err != nil {
				return err
			}
			e = relative(w, q)
			if math.IsNaN(e) {
				e = math.Inf(1) // beyond the type's range
			}
		}
		u.errors = append(u.errors, e)
	}
	return nil
}

// measure takes the calibration text through the original model and measures the errors of all types.
func (a *assigner) measure() error {
	set := a.opt.Calib
	a.opt.Progress.Stage("errors of types", a.plan.Elements())
	defer a.opt.Progress.Done()
	if err := a.measureEmbedding(); err != nil {
		return err
	}
	s, err := newStream(a.m, set.Sequences, set.SeqLen, false, newStateBudget(a.opt.Memory), a.tempDir, nil)
	if err != nil {
		return err
	}
	defer s.close()
	first, err := a.recall(s)
	if err != nil {
		return err
	}
	for i := first; i < a.m.Layers(); i++ {
		a.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, a.m.Layers()))
		if err := a.keep(s, i, func() error { return a.measureLayer(s, i) }); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	a.opt.Progress.Item("head")
	return a.measureHead(s)
}

// measureEmbedding rounds the rows of the text's tokens.
func (a *assigner) measureEmbedding() error {
	u := a.uses[eval.Embedding]
	if u == nil {
		return nil
	}
	set := a.opt.Calib
	total := len(set.Sequences) * set.SeqLen
	tokens := make([]int32, min(sampleEmbeddings, total))
	for i := range tokens {
		at := i * total / len(tokens)
		tokens[i] = set.Sequences[at/set.SeqLen][at%set.SeqLen]
	}
	x := tensor.New(len(tokens), a.m.Dim)
	if err := a.m.EmbedRows(x, tokens); err != nil {
		return err
	}
	return u.measure(x, func(t *Tensor) (*tensor.Matrix, error) {
		_, q := encode(t.Type, x, nil)
		return q, nil
	}, quant.WeightError)
}

func (a *assigner) measureLayer(s *stream, index int) error {
	l, err := a.m.LoadLayer(index)
	if err != nil {
		return err
	}
	defer l.Release()
	for k := range l.Stages {
		if err := a.measureStage(s, l, k); err != nil {
			return err
		}
	}
	return nil
}

// measureStage measures the linears of stage k. Experts count together: their inputs, and the rows of the tensor that
// they are in.
func (a *assigner) measureStage(s *stream, l *model.Layer, k int) error {
	stage := &l.Stages[k]
	group := func(site *model.Site) int { // the experts, and then what sees all tokens beside them
		if site.Expert < 0 && len(stage.Sites) > 1 {
			return 1
		}
		return 0
	}
	var in []*quant.Stats
	var sites [2][]*model.Site
	for _, site := range stage.Sites {
		g := group(site)
		if g == len(in) {
			in = append(in, quant.NewStats(site.In()))
		}
		sites[g] = append(sites[g], site)
	}
	for i := range s.x.Batches() {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		err := s.step(a.ctx, l, k, i, true, func() error {
			for j := range stage.Sites {
				if h, _ := stage.InputOf(s.st, j); h.Rows > 0 {
					in[group(stage.Sites[j])].Observe(h)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	s.passed(l, k)
	for n, stats := range in {
		solver := a.plan.Recipe.Method.Open(stats)
		for j := range sites[n][0].Linears {
			var parts []*model.Linear
			for _, site := range sites[n] {
				parts = append(parts, site.Linears[j])
			}
			if err := a.measureLinear(a.uses[parts[0].Name], parts, stats, solver); err != nil {
				return err
			}
			for _, lin := range parts {
				a.opt.Progress.Add(int64(lin.Out) * int64(lin.In))
			}
		}
	}
	return nil
}

func (a *assigner) measureHead(s *stream) error {
	u := a.uses[eval.Head]
	if u == nil {
		return nil
	}
	h, err := a.m.LoadHead()
	if err != nil {
		return err
	}
	defer h.Release()
	in := quant.NewStats(h.Linear.In)
	err = s.each(func(_ int, x *tensor.Matrix) error {
		y := scratch(&s.copy, x.Rows, a.m.Dim)
		h.In(y, x)
		in.Observe(y)
		return a.ctx.Err()
	})
	if err != nil {
		return err
	}
	return a.measureLinear(u, []*model.Linear{h.Linear}, in, a.plan.Recipe.Method.Open(in))
}

// measureLinear quantizes some rows of a linear, or of the experts' in one tensor, to each type by the recipe's method, on
// the original model's inputs; u is nil for a linear that is not open.
func (a *assigner) measureLinear(u *use, parts []*model.Linear, in *quant.Stats, solver quant.Solver) error {
	if u == nil {
		return nil
	}
	out := parts[0].Out
	all := len(parts) * out
	w := tensor.New(min(sampleRows, all), parts[0].In)
	for i := range w.Rows {
		r := i * all / w.Rows
		row, err := parts[r/out].Part(r%out, r%out+1).Matrix()
		if err != nil {
			return fmt.Errorf("%s: %w", a.m.Source.Name(), err)
		}
		copy(w.Row(i), row.Row(0))
	}
	u.importance = in.Importance()
	return u.measure(w, func(t *Tensor) (*tensor.Matrix, error) {
		if t.Name == embeddingName { // the head too: a run rounds it as the embedding
			_, q := encode(t.Type, w, nil)
			return q, nil
		}
		q, err := round(a.ctx, t, quant.Job{W: w, Product: parts[0].Product}, solver)
		return q.decoded, err
	}, func(w, q *tensor.Matrix) float64 { return quant.OutputError(w, q, in.H) })
}

// memory estimates what measuring sensitivities took: hidden states of every variant of the model, as far as the budget
// (0: no limit) keeps them in memory, a linear beside its probe, and the logits of two variants for a part of the text.
func (as *Assignment) memory(m *model.Model, budget int64) int64 {
	states := 4 * int64(len(as.Tensors)+2) * int64(as.Tokens) * int64(m.Dim)
	if budget > 0 {
		states = min(states, budget)
	}
	return states + 4*3*int64(m.Dim)*int64(m.Widest()) + 4*2*partTokens*int64(m.Vocab)
}

// sensitivity measures the effect of the probe in each use's place, and returns on how many tokens.
func (a *assigner) sensitivity() (tokens int, err error) {
	set := a.opt.Calib
	// A variant runs from its layer on: on average half of the model.
	variants := (len(a.order) + 1) / 2
	length := min(set.SeqLen, partTokens)
	parts := min(max(sensitivityPasses*set.Tokens()/variants/length, minParts), len(set.Sequences))
	var text []int32
	for i := range parts {
		text = append(text, set.Sequences[i*len(set.Sequences)/parts][:length]...)
	}
	var effects []eval.Effect
	if a.opt.Engine != nil {
		effects, err = a.effectsByUnits(text, length)
	} else {
		effects, err = effectsOf(a.ctx, a.m, text, length, a.order, a.opt.Memory, a.tempDir, a.opt.Progress)
	}
	if err != nil {
		return 0, err
	}
	for i, e := range effects {
		a.order[i].kl = max(e.KL, 0) // rounding makes zeros of either sign
	}
	return len(text), nil
}

// effectsOf measures the effect of each use's probe on m's predictions of a text in parts of a length.
func effectsOf(ctx context.Context, m *model.Model, text []int32, length int, uses []*use, memory int64, tempDir string,
	progress eval.Progress) ([]eval.Effect, error) {
	var rs []eval.Replacement
	for _, u := range uses {
		rs = append(rs, eval.Replacement{Linear: u.site, Weights: func(w *tensor.Matrix) (*tensor.Matrix, error) {
			return u.rounded(w), nil
		}})
	}
	m.Precision = kernels.F32 // as the replaced weights are multiplied: the probe shall be all that differs
	return eval.Sensitivity(ctx, m, text, rs, eval.Options{Context: length, ScoreAll: true, Memory: memory, TempDir: tempDir, Progress: progress})
}
