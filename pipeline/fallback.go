package pipeline

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/int8outlier"
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
func (r *run) mayFallBack() bool {
	return r.opt.Fallback.MaxError > 0 || r.plan.Recipe.Method.Needs().Decides && r.opt.Validate.MaxIncrease > 0
}

func (f *Fallback) fits(p *Plan) bool {
	return (f.MaxBytes == 0 || p.File.Size() <= f.MaxBytes) && (f.MaxBPW == 0 || p.BitsPerWeight() <= f.MaxBPW)
}

// fallBack changes the plan for the linears of a finished run that are past the largest error, and reports what it did
// for each. There is nothing to redo if none is done.
func (r *run) fallBack() (reports []FallbackReport, redo bool, err error) {
	f := &r.opt.Fallback
	if f.MaxError == 0 {
		return nil, false, nil
	}
	var worst []*TensorReport
	for i := range r.plan.Tensors {
		t := &r.plan.Tensors[i]
		rep := r.reports[t.Name]
		if t.Role == model.RoleLinear && t.Type.Grid != nil && t.Type != ggml.Q8_0 && t.Cols()%ggml.Q8_0.BlockLen == 0 &&
			rep.rounding > f.MaxError {
			worst = append(worst, rep)
		}
	}
	slices.SortStableFunc(worst, func(a, b *TensorReport) int { return cmp.Compare(b.rounding, a.rounding) })
	for _, w := range worst {
		outliers := r.outliers(w.Name)
		next, err := r.plan.withQ8(w.Name, outliers)
		if err != nil {
			return nil, false, err
		}
		rep := FallbackReport{Name: w.Name, From: w.Type, RelativeError: w.rounding, Outliers: len(outliers),
			Bytes: next.File.Size() - r.plan.File.Size(), Done: f.fits(next)}
		if rep.Done {
			*r.plan, redo = *next, true
		}
		reports = append(reports, rep)
	}
	return reports, redo, nil
}

// withQ8 returns the plan with a linear in Q8_0 and its outlier features recorded.
func (p *Plan) withQ8(name string, outliers []uint32) (*Plan, error) {
	next := *p
	next.Tensors = slices.Clone(p.Tensors)
	t := next.Lookup(name)
	t.Type, t.Wanted = ggml.Q8_0, ggml.Q8_0
	var md gguf.Metadata
	if len(outliers) > 0 {
		md.Set(model.OutliersPrefix+name, outliers)
	}
	return &next, next.SetMetadata(md)
}

// outliers returns the outlier features of a linear's input. The hidden states that enter attention and MLP have the
// same features in every layer, the inputs of attn_output and ffn_down their own.
func (r *run) outliers(name string) []uint32 {
	in := r.inputs[name]
	if in == nil {
		return nil // experts: their Q8_0 weights take any input
	}
	var layers []int8outlier.Counts
	if in.shares == "" {
		layers = append(layers, in.counts)
	} else {
		for _, other := range r.groups {
			if other.shares == in.shares {
				layers = append(layers, other.counts)
			}
		}
	}
	var features []uint32
	for _, j := range (int8outlier.Criteria{}).Features(layers) {
		features = append(features, uint32(j))
	}
	return features
}
