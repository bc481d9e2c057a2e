package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/packed"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/quant"
)

// run is a GGUF file, as far as the inputs tell of it.
type run struct {
	ID, Name      string
	Bytes         int64
	BitsPerWeight float64
	Method        string
	Seconds       float64 // 0: not known
	PeakRSS       int64
	Tensors       []tensorRow
	Evaluations   []evaluationRow
	Fallbacks     []pipeline.FallbackReport
	Foldings      []quant.Folding // after finish those that left a group as it is
	NoBias        []string
	Assignment    *pipeline.Assignment // nil without a budget
	Metadata      []metadataRow
	Outliers      []outlierRow

	Errors, Bits *heatmap
	Predicted    *heatmap    // of the budget's assignment
	Outer        []tensorRow // what is in no layer
	Types        []typeRow
	Worst        []tensorRow
	Smoothing    *rangeTable
	Histograms   []pair

	ranges              []pipeline.GroupRanges
	reported, described bool // by a quantization's report, and by the file itself
}

// tensorRow is a tensor. Error is negative where it is not known.
type tensorRow struct {
	Name, Type, Wanted string
	Bits               float64
	Bytes              int64
	Error              float64
	Share              float64 // of the file, in percent
}

type typeRow struct {
	Name    string
	Tensors int
	Bytes   int64
	Share   float64
}

type metadataRow struct{ Key, Value string }

type outlierRow struct {
	Linear   string
	Features []uint32
}

type evaluationRow struct {
	Text, Protocol string
	point
}

const unknownError = -1

// quantizedLinear says whether t is what heat maps are about; floating-point types lose next to nothing.
func (t *tensorRow) quantizedLinear() bool {
	_, _, ok := linearOf(t.Name)
	typ, err := typeNamed(t.Type)
	return ok && err == nil && typ.Grid != nil
}

// typeNamed is a type of GGUF's, or of a checkpoint for servers.
func typeNamed(name string) (*ggml.Type, error) {
	if t := packed.Named(name); t != nil {
		return t, nil
	}
	return ggml.ByName(name)
}

func (r *run) addQuantization(q *Quantization) error {
	if r.reported {
		return fmt.Errorf("a second quantization of %s with %d bytes", r.Name, r.Bytes)
	}
	r.reported = true
	r.Seconds, r.PeakRSS, r.BitsPerWeight = q.Seconds, q.PeakRSS, q.BitsPerWeight
	r.Fallbacks, r.Foldings, r.NoBias, r.ranges = q.Int8Fallbacks, q.Foldings, q.NoBias, q.Ranges
	r.Assignment = q.Assignment
	r.Tensors = nil
	for i := range q.Tensors {
		t := &q.Tensors[i]
		typ, err := typeNamed(t.Type)
		if err != nil {
			return err
		}
		r.Tensors = append(r.Tensors, tensorRow{
			Name: t.Name, Type: typ.Name, Wanted: t.Wanted, Bits: typ.BitsPerWeight(), Bytes: t.Bytes, Error: t.RelativeError,
		})
	}
	return nil
}

func (r *run) addModel(m *Model) error {
	if r.described {
		return fmt.Errorf("a second file %s of %d bytes", r.Name, r.Bytes)
	}
	r.described = true
	var errors []float32
	for _, kv := range m.Metadata {
		linear, outliers := strings.CutPrefix(kv.Key, model.OutliersPrefix)
		features, ok := kv.Value.([]uint32)
		switch {
		case kv.Key == model.ErrorsKey:
			if errors, ok = kv.Value.([]float32); !ok || len(errors) != len(m.Tensors) {
				return fmt.Errorf("%s does not have a float32 for each of %d tensors", kv.Key, len(m.Tensors))
			}
		case kv.Key == model.MethodKey:
			r.Method = fmt.Sprint(kv.Value)
		case outliers && ok:
			r.Outliers = append(r.Outliers, outlierRow{linear, features})
		default:
			r.Metadata = append(r.Metadata, metadataRow{kv.Key, short(kv.Value)})
		}
	}
	if r.reported {
		return nil // from the quantization's report, which knows more
	}
	var bytes, weights int64
	for i := range m.Tensors {
		t := &m.Tensors[i]
		row := tensorRow{Name: t.Name, Type: t.Type.Name, Bits: t.Type.BitsPerWeight(), Bytes: t.Bytes(), Error: unknownError}
		if errors != nil {
			if row.Error = float64(errors[i]); !(row.Error >= 0 && row.Error <= math.MaxFloat32) {
				return fmt.Errorf("%s: tensor %q has error %g", model.ErrorsKey, t.Name, row.Error)
			}
		}
		r.Tensors = append(r.Tensors, row)
		bytes += t.Bytes()
		weights += int64(t.Elements())
	}
	r.BitsPerWeight = 8 * float64(bytes) / float64(max(weights, 1))
	return nil
}

// short prints a metadata value on a line or two.
func short(v any) string {
	const most = 200
	if list, ok := v.([]string); ok {
		v = strings.Join(list, ", ")
	}
	if s := []rune(fmt.Sprint(v)); len(s) > most {
		return string(s[:most]) + "…"
	}
	return fmt.Sprint(v)
}

// worstShown is how many tensors are listed as those that lose most.
const worstShown = 5

// finish draws what all inputs together tell of the file; errors are coloured by a scale that all files share.
func (r *run) finish(scale *heatScale) {
	name := func(i int) string { return r.Tensors[i].Name }
	known := len(r.Tensors) > 0 && r.Tensors[0].Error >= 0
	if exp := scale.exponent(); slices.ContainsFunc(r.Tensors, func(t tensorRow) bool { return t.Error >= 0 && t.quantizedLinear() }) {
		r.Errors = newHeatmap(len(r.Tensors), name, func(i int) heatCell {
			t := &r.Tensors[i]
			return heatCell{scaled(t.Error, exp), fmt.Sprintf("%s: %s, %s", t.Name, num(t.Error), t.Type), scale.heat(t.Error)}
		})
		if m := r.Errors; m != nil {
			m.ID, m.Caption = r.ID+"-errors", "Error of each linear, × "+powerOfTen(exp)
			m.Low, m.High = scale.ends()
			m.Note = "Relative squared error of its output on the calibration text, or of its weights where there was none."
		}
	}
	const fewest, most = 2, 16 // bits; between them lie all types but F32
	bits := &heatScale{fewest, most}
	r.Bits = newHeatmap(len(r.Tensors), name, func(i int) heatCell {
		t := &r.Tensors[i]
		return heatCell{t.Type, fmt.Sprintf("%s: %g bits per weight, %s", t.Name, t.Bits, formatBytes(t.Bytes)),
			bits.heat(t.Bits)}
	})
	if m := r.Bits; m != nil {
		m.ID, m.Caption, m.Bits = r.ID+"-bits", "Type of each linear", true
		m.Low, m.High = "2 bits", "16 bits"
	}
	r.predicted()
	r.total()
	if known {
		r.Worst = slices.Clone(r.Tensors)
		slices.SortStableFunc(r.Worst, func(a, b tensorRow) int { return descending(a.Error, b.Error) })
		r.Worst = r.Worst[:min(worstShown, len(r.Worst))]
	}
	r.smoothing()
}

// predicted draws what the budget's assignment expects of each tensor.
func (r *run) predicted() {
	if r.Assignment == nil {
		return
	}
	ts := r.Assignment.Tensors
	scale := newHeatScale()
	for i := range ts {
		if _, _, ok := linearOf(ts[i].Name); ok {
			scale.add(ts[i].PredictedKL)
		}
	}
	exp := scale.exponent()
	r.Predicted = newHeatmap(len(ts), func(i int) string { return ts[i].Name }, func(i int) heatCell {
		t := &ts[i]
		return heatCell{scaled(t.PredictedKL, exp), fmt.Sprintf("%s: %s in %s", t.Name, num(t.PredictedKL), t.Type),
			scale.heat(t.PredictedKL)}
	})
	if m := r.Predicted; m != nil {
		m.ID, m.Caption = r.ID+"-predicted", "KL divergence predicted for each linear's type, × "+powerOfTen(exp)
		m.Low, m.High = scale.ends()
		m.Note = "From the sensitivities by which the budget was spent; effects are taken to add up."
	}
}

// total sums tensors by type.
func (r *run) total() {
	var all int64
	for i := range r.Tensors {
		t := &r.Tensors[i]
		all += t.Bytes
		k := slices.IndexFunc(r.Types, func(row typeRow) bool { return row.Name == t.Type })
		if k < 0 {
			k = len(r.Types)
			r.Types = append(r.Types, typeRow{Name: t.Type})
		}
		r.Types[k].Tensors++
		r.Types[k].Bytes += t.Bytes
	}
	share := func(n int64) float64 { return 100 * float64(n) / float64(max(all, 1)) }
	for i := range r.Types {
		r.Types[i].Share = share(r.Types[i].Bytes)
	}
	slices.SortStableFunc(r.Types, func(a, b typeRow) int { return descending(a.Share, b.Share) })
	for i := range r.Tensors {
		t := &r.Tensors[i]
		t.Share = share(t.Bytes)
		if ggml.ParseName(t.Name).Layer < 0 {
			r.Outer = append(r.Outer, *t)
		}
	}
}

// taskMeasure is a measure with the factor and unit to print it in.
type taskMeasure struct {
	*eval.Measure
	scale float64
	unit  string
}

func percent(m *eval.Measure) *taskMeasure {
	if m == nil {
		return nil
	}
	return &taskMeasure{m, 100, "%"}
}
