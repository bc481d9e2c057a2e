package pipeline

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/model"
)

// Fallback gives linears that quantization hurts most Q8_0 in place of their type. The zero value gives none.
//
// Types fix the file's layout before the first weight is quantized, and better linears change the inputs of those after
// them: a run that finds linears to redo starts over with the new types, until none is left.
type Fallback struct {
	// MaxError is the relative output error past which a linear falls back; 0: none does. It is the error of rounding: what
	// a method did to the weight before, to correct for others, is not in it.
	MaxError float64
	// MaxBytes and MaxBPW bound the file's size and its tensors' bits per weight, 0: they do not. While not all linears
	// fit, those with the largest errors go first.
	MaxBytes int64
	MaxBPW   float64
}

// FallbackReport is what became of a linear past the largest error.
type FallbackReport struct {
	Name string `json:"name"`
	From string `json:"from"` // the type it had
	// RelativeError is that of rounding to that type.
	RelativeError float64 `json:"relative_error"`
	// Outliers is the number of outlier features of its input, by the criteria of LLM.int8() (package int8outlier).
	Outliers int `json:"outlier_features"`
	// KL is what the rounding alone adds to the divergence from the original model, where a limit on the perplexity's
	// increase decided; else 0.
	KL float64 `json:"kl_divergence"`

	Bytes int64 `json:"added_bytes"` // what falling back adds to the file
	// Done is false for a linear that the budget leaves as it is.
	Done bool `json:"done"`
}

// check refuses a fallback that cannot be carried out.
func (f *Fallback) check(p *Plan, calibrated bool) error {
	switch {
	case f.MaxError == 0 && (!p.Recipe.Method.Needs().Decides || f.MaxBytes == 0 && f.MaxBPW == 0):
		return nil
	case !(f.MaxError >= 0):
		return fmt.Errorf("falling back to INT8 past a relative error of %g: want a positive number", f.MaxError)
	case !calibrated:
		return fmt.Errorf("falling back to INT8 goes by the linears' output errors, which take calibration text")
	case f.MaxBytes > 0 && p.File.Size() > f.MaxBytes:
		return fmt.Errorf("the file takes %d bytes before anything falls back to INT8, %d are allowed", p.File.Size(), f.MaxBytes)
	case f.MaxBPW > 0 && p.BitsPerWeight() > f.MaxBPW:
		return fmt.Errorf("the file takes %.4f bits per weight before anything falls back to INT8, %g are allowed",
			p.BitsPerWeight(), f.MaxBPW)
	}
	return nil
}

// mayFallBack says whether rounding errors and outlier features of the linears are asked for.
func (t *task) mayFallBack() bool {
	return t.opt.Fallback.MaxError > 0 || t.plan.Recipe.Method.Needs().Decides && t.opt.Validate.MaxIncrease > 0
}

func (f *Fallback) fits(p *Plan) bool {
	return (f.MaxBytes == 0 || p.File.Size() <= f.MaxBytes) && (f.MaxBPW == 0 || p.BitsPerWeight() <= f.MaxBPW)
}

// fallBack returns the plan with Q8_0 for the linears of a finished attempt that are past the largest error, nil if there
// are none or no room for any, and reports what it did for each.
func (t *task) fallBack(reports map[string]*TensorReport, seen *observer) (fallbacks []FallbackReport, next *Plan, err error) {
	f := &t.opt.Fallback
	if f.MaxError == 0 {
		return nil, nil, nil
	}
	var worst []*TensorReport
	for i := range t.plan.Tensors {
		lin := &t.plan.Tensors[i]
		rep := reports[lin.Name]
		if lin.Role == model.RoleLinear && lin.Type.Grid != nil && lin.Type != ggml.Q8_0 && lin.Cols()%ggml.Q8_0.BlockLen == 0 &&
			rep.rounding > f.MaxError {
			worst = append(worst, rep)
		}
	}
	slices.SortStableFunc(worst, func(a, b *TensorReport) int { return cmp.Compare(b.rounding, a.rounding) })
	q := &promotion{plan: t.plan, fallback: f, seen: seen}
	for _, w := range worst {
		if _, err := q.promote(FallbackReport{Name: w.Name, From: w.Type, RelativeError: w.rounding}); err != nil {
			return nil, nil, err
		}
	}
	return q.reports, q.next(), nil
}

// promotion gives linears of a plan Q8_0, one after the other.
type promotion struct {
	plan     *Plan // with those so far
	fallback *Fallback
	seen     *observer
	done     int
	reports  []FallbackReport
}

// promote gives the linear of a report Q8_0 if there is room, and completes the report.
func (q *promotion) promote(rep FallbackReport) (done bool, err error) {
	outliers := q.seen.outliers(rep.Name)
	next, err := q.plan.withQ8(rep.Name, outliers)
	if err != nil {
		return false, err
	}
	rep.Outliers, rep.Bytes, rep.Done = len(outliers), next.File.Size()-q.plan.File.Size(), q.fallback.fits(next)
	if rep.Done {
		q.plan = next
		q.done++
	}
	q.reports = append(q.reports, rep)
	return rep.Done, nil
}

// next is the plan, nil if it is still the first.
func (q *promotion) next() *Plan {
	if q.done == 0 {
		return nil
	}
	return q.plan
}

// withQ8 returns the plan with a linear in Q8_0 and its outlier features recorded.
func (p *Plan) withQ8(name string, outliers []uint32) (*Plan, error) {
	tensors := slices.Clone(p.Tensors)
	t := &tensors[slices.IndexFunc(tensors, func(t Tensor) bool { return t.Name == name })]
	t.Type, t.Wanted = ggml.Q8_0, ggml.Q8_0
	var md gguf.Metadata
	if len(outliers) > 0 {
		md.Set(model.OutliersPrefix+name, outliers)
	}
	return p.with(tensors, md)
}
