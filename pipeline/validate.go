package pipeline

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// Validate says how the finished file is compared to the original before it takes its name. The zero value does not.
type Validate struct {
	// Tokens are sequences as long as those of the calibration set, and none of them.
	Tokens []int32
	// MaxIncrease bounds the increase of the perplexity, relative to the original's, with which the file is kept; 0: it
	// does not. It is met by an increase that is within it together with its standard error: what cannot be told from
	// more is not. The method Auto gives linears Q8_0 and starts over until it is met; another method fails.
	MaxIncrease float64
}

const (
	// maxRuns bounds how often Auto starts over. Before the last run all linears that can get Q8_0 do.
	maxRuns = 5
	// aim is the share of the limit that linears are given Q8_0 for: predictions are uncertain.
	aim = 0.8
	// sensitivityTokens of the calibration set tell how much each linear matters.
	sensitivityTokens = 2048
	// minValidated is the shortest sequence that eval reads.
	minValidated = 4
)

// Validation is how the file compares to the original. The JSON names are part of the command line's interface.
type Validation struct {
	Tokens    int         `json:"tokens"` // predicted: all but the first of each sequence
	Original  eval.Figure `json:"ppl_original"`
	Quantized eval.Figure `json:"ppl_quantized"`
	Increase  eval.Figure `json:"increase"` // Quantized/Original − 1
	// StdErr is the standard error of Increase, from the differences of the models' log-probabilities token by token.
	StdErr eval.Figure `json:"increase_stderr"`
	KL     float64     `json:"kl_divergence"` // mean of KL(original‖quantized), in nats
	Limit  float64     `json:"limit"`         // 0: none
	Met    bool        `json:"met"`           // Increase + StdErr are within Limit, or there is none
	// Runs are the validations of all runs, the last of which is above.
	Runs []ValidatedRun `json:"runs"`
}

// ValidatedRun is one of the runs that it took to meet the limit.
type ValidatedRun struct {
	Int8     int         `json:"int8_linears"` // that have fallen back to Q8_0
	Bytes    int64       `json:"bytes"`
	Increase eval.Figure `json:"increase"`
	StdErr   eval.Figure `json:"increase_stderr"`
}

// LimitError says that the perplexity rises by more than Validate.MaxIncrease. Nothing was written.
type LimitError struct {
	Report *Report // of the last run; its Output is empty
	// Tried says that Auto gave Q8_0 to all linears that it could; Left is how many it could not, for their types were
	// given by a rule or Fallback's budget had no room.
	Tried bool
	Left  int
}

func newLimitError(rep *Report) *LimitError {
	e := &LimitError{Report: rep, Tried: rep.Plan.Recipe.Method.Needs().Decides}
	for i := range rep.Plan.Tensors {
		if coarse(&rep.Plan.Tensors[i]) {
			e.Left++
		}
	}
	return e
}

func (e *LimitError) Error() string {
	v := e.Report.Validation
	s := fmt.Sprintf("the perplexity of held-out calibration text is %+.3g%% ± %.2g%%, the limit is %.3g%%: nothing is written; ",
		100*v.Increase, 100*v.StdErr, 100*v.Limit)
	switch {
	case !e.Tried:
		return s + "the method auto would give Q8_0 to the linears that cost most"
	case e.Left > 0:
		return s + fmt.Sprintf("rules, or the size or the bits per weight allowed, keep %d linears from getting Q8_0", e.Left)
	case float64(v.StdErr) > v.Limit:
		return s + "even with Q8_0 throughout the standard error is larger: allow more, or give more text to hold out"
	}
	return s + "even Q8_0 throughout is too coarse: allow more"
}

func (o *Validate) check(set *calib.Set) error {
	switch {
	case !(o.MaxIncrease >= 0):
		return fmt.Errorf("the perplexity may rise by %g: want a positive share", o.MaxIncrease)
	case len(o.Tokens) == 0 && o.MaxIncrease == 0:
		return nil
	case set == nil:
		return errors.New("validating the file takes calibration text, and some of it that is held out")
	case set.SeqLen < minValidated:
		return fmt.Errorf("sequences of %d tokens are too short to measure perplexity on: want at least %d", set.SeqLen, minValidated)
	case len(o.Tokens) == 0 || len(o.Tokens)%set.SeqLen != 0:
		return fmt.Errorf("%d tokens of calibration text are held out: want whole sequences of %d", len(o.Tokens), set.SeqLen)
	}
	return nil
}

// ValidationMetadata is room in a plan for what validation will measure; see model.KLKey.
func ValidationMetadata() gguf.Metadata {
	return gguf.Metadata{{Key: model.KLKey, Value: float32(0)}, {Key: model.KLTokensKey, Value: uint32(0)},
		{Key: model.KLTextKey, Value: "held out of the calibration text"}}
}

// setDivergence stores what validation measured, where the plan has room for it.
func (w *writer) setDivergence(v *Validation) error {
	if _, ok := w.plan.Metadata.Get(model.KLKey); !ok {
		return nil
	}
	if err := w.file.SetMeta(model.KLKey, float32(v.KL)); err != nil {
		return err
	}
	return w.file.SetMeta(model.KLTokensKey, uint32(v.Tokens))
}

// validate compares the file that has just been completed to the original.
func (t *task) validate(w *writer, found *findings) error {
	o := &t.opt.Validate
	f, err := w.file.(*gguf.Writer).Open() // checkForm
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := arch.Open(f)
	if err != nil {
		return err
	}
	res, err := eval.Perplexity(t.ctx, m, o.Tokens, eval.Options{Context: t.opt.Calib.SeqLen, ScoreAll: true, Base: t.m,
		Memory: t.opt.Memory, TempDir: t.tempDir, Progress: t.opt.Progress})
	if err != nil {
		return err
	}
	found.validation = &Validation{
		Tokens: res.TokensScored, Original: res.BasePerplexity, Quantized: res.Perplexity, Increase: res.Increase,
		StdErr: res.IncreaseStdErr, KL: res.KL, Limit: o.MaxIncrease,
		Met: o.MaxIncrease == 0 || float64(res.Increase+res.IncreaseStdErr) <= o.MaxIncrease,
	}
	found.runs = append(found.runs, ValidatedRun{
		Int8: found.int8, Bytes: t.plan.File.Size(), Increase: res.Increase, StdErr: res.IncreaseStdErr,
	})
	found.validation.Runs = slices.Clone(found.runs)
	return nil
}

// share returns which share of the divergences may be left for the increase and its standard error to be within limit:
// the one is taken to be in proportion to them, the other, as the differences of log-probabilities are, to their root.
func (v *Validation) share(limit float64) float64 {
	// Increase·q² + StdErr·q = limit, for q² the share.
	increase, stderr := float64(v.Increase), float64(v.StdErr)
	q := 2 * limit / (stderr + math.Sqrt(max(0, stderr*stderr+4*increase*limit)))
	if math.IsNaN(q) { // without an increase that is a number, no share is small enough
		return 0
	}
	return min(q*q, 1)
}

// relieved is a linear that could get Q8_0.
type relieved struct {
	rep   *TensorReport
	kl    float64 // what its rounding adds to the divergence
	bytes int64   // what Q8_0 adds to the file
}

// relieve returns a plan with which the next attempt's perplexity may be within the limit: linears get Q8_0, those first
// whose rounding adds most to the divergence for the bytes it takes to do away with it. nil: none are left, or there were
// attempts enough.
func (t *task) relieve(reports map[string]*TensorReport, seen *observer, found *findings) (fallbacks []FallbackReport, next *Plan, err error) {
	v := found.validation
	runs := len(found.runs)
	if !t.plan.Recipe.Method.Needs().Decides || runs == maxRuns {
		return nil, nil, nil
	}
	if found.kl == nil {
		if found.kl, err = t.sensitivity(found.plain); err != nil {
			return nil, nil, err
		}
	}
	var list []relieved
	var total float64
	for i := range t.plan.Tensors {
		lin := &t.plan.Tensors[i]
		b := found.plain[lin.Name]
		if b == nil || !t.relievable(lin) {
			continue
		}
		rep := reports[lin.Name]
		kl := rep.rounding // of a linear whose output is all zeros
		if b.err > 0 {
			kl *= found.kl[lin.Name] / b.err
		}
		total += kl
		list = append(list, relieved{rep, kl, int64(lin.Elements()/ggml.Q8_0.BlockLen*ggml.Q8_0.BlockBytes) - lin.Bytes()})
	}
	slices.SortStableFunc(list, func(a, b relieved) int {
		return cmp.Compare(b.kl*float64(a.bytes), a.kl*float64(b.bytes))
	})
	wanted := total * (1 - v.share(aim*v.Limit))
	if runs == maxRuns-1 {
		wanted = total
	}
	var gone float64
	q := &promotion{plan: t.plan, fallback: &t.opt.Fallback, seen: seen}
	for i, l := range list {
		if gone >= wanted && i > 0 && wanted < total {
			break
		}
		done, err := q.promote(FallbackReport{Name: l.rep.Name, From: l.rep.Type, RelativeError: l.rep.rounding, KL: l.kl})
		if err != nil {
			return nil, nil, err
		}
		if done {
			gone += l.kl
		}
	}
	found.int8 += q.done
	return q.reports, q.next(), nil
}

// relievable says whether a tensor may get Q8_0: no rule has given it the type it has.
func (t *task) relievable(lin *Tensor) bool {
	return coarse(lin) && lin.Cols()%ggml.Q8_0.BlockLen == 0 &&
		!slices.ContainsFunc(t.plan.Recipe.Rules, func(rule Rule) bool { return rule.Pattern.MatchString(lin.Name) })
}

// coarse says whether a tensor is a layer's linear of fewer bits than Q8_0.
func coarse(t *Tensor) bool {
	const bits = 8.5 // Q8_0's
	return t.Role == model.RoleLinear && 8*float64(t.Bytes()) < bits*float64(t.Elements())
}

// sensitivity measures what rounding each linear of the original model alone does to its predictions.
func (t *task) sensitivity(plain map[string]*plainRounding) (map[string]float64, error) {
	var rs []eval.Replacement
	for i := range t.plan.Tensors {
		lin := &t.plan.Tensors[i]
		b := plain[lin.Name]
		if b == nil || !t.relievable(lin) {
			continue
		}
		rs = append(rs, eval.Replacement{Linear: lin.Name, Weights: func(w *tensor.Matrix) (*tensor.Matrix, error) {
			_, decoded := encode(lin.Type, w, b.importance)
			return decoded, nil
		}})
	}
	kl := map[string]float64{}
	if len(rs) == 0 {
		return kl, nil
	}
	set := t.opt.Calib
	n := min(max(1, sensitivityTokens/set.SeqLen), len(set.Sequences))
	var tokens []int32
	for i := range n {
		tokens = append(tokens, set.Sequences[i*len(set.Sequences)/n]...)
	}
	effects, err := eval.Sensitivity(t.ctx, t.m, tokens, rs, eval.Options{Context: set.SeqLen, ScoreAll: true,
		Memory: t.opt.Memory, TempDir: t.tempDir, Progress: t.opt.Progress})
	if err != nil {
		return nil, err
	}
	for i, e := range effects {
		kl[rs[i].Linear] = e.KL
	}
	return kl, nil
}
