package eval

import (
	"context"
	"fmt"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/i8"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Activations is how the inputs of the layers' linears are multiplied. Norms, softmax, residuals and the head stay
// floating-point in all of them.
type Activations string

const (
	// Float multiplies floating-point inputs with the weights as they are stored.
	Float Activations = ""
	// Int8Static rounds inputs to eight bits with the scales that calibration left in the model's metadata, and multiplies
	// them with Q8_0 weights in integers. Weights of another type are rounded to Q8_0 first.
	Int8Static Activations = "int8-static"
	// Int8Dynamic is Int8Static with a scale for each token, from its own largest magnitude.
	Int8Dynamic Activations = "int8-dynamic"
	// LLMInt8 multiplies by the method of package int8outlier. Features are outliers by what the text's first tokens show
	// in floating point, and those that the model's metadata records for a tensor.
	LLMInt8 Activations = "llm.int8"
	// Q8 rounds inputs to eight bits with a step for each 32 values of a token, and multiplies them with the weights as they
	// are stored, in integers: q8.MatMul. It is the fastest. Floating-point weights are rounded to Q8_0 first;
	// linears whose columns no block divides stay as they are.
	Q8 Activations = "q8"
)

// outlierTokens is how many of the text's tokens decide which features are outliers.
const outlierTokens = 8192

// activations prepares the linears of one model, layer by layer.
type activations struct {
	mode     Activations
	scales   map[string]float32 // Int8Static: by linear
	outliers map[string][]int   // LLMInt8: by linear
}

func newActivations(ctx context.Context, m *model.Model, p *plan, opt Options) (*activations, error) {
	a := &activations{mode: opt.Activations}
	var err error
	switch a.mode {
	case Float:
		return nil, nil
	case Int8Dynamic, Q8:
	case Int8Static:
		a.scales, err = staticScales(m.Source)
	case LLMInt8:
		p.progress.Item("outlier features")
		a.outliers, err = findOutliers(ctx, m, p, opt.Outliers)
	default:
		err = fmt.Errorf("unknown activations %q; known: %s, %s, %s, %s", a.mode, Q8, Int8Static, Int8Dynamic, LLMInt8)
	}
	if err != nil {
		return nil, fmt.Errorf("eval: %w", err)
	}
	return a, nil
}

// staticScales reads the calibrated scales of a model.
func staticScales(src model.Source) (map[string]float32, error) {
	v, ok := src.Meta(model.StaticScalesKey)
	if !ok {
		return nil, fmt.Errorf("%s has no static scales of activations (%s): write them with quantize --method int8, "+
			"or choose %s", src.Name(), model.StaticScalesKey, Int8Dynamic)
	}
	scales, ok := v.([]float32)
	names, _ := src.Meta(model.StaticLinearsKey)
	linears, nok := names.([]string)
	if !ok || !nok || len(scales) != len(linears) {
		return nil, fmt.Errorf("%s: %s and %s are not as many float32 values and strings: %d and %d", src.Name(),
			model.StaticScalesKey, model.StaticLinearsKey, len(scales), len(linears))
	}
	byName := make(map[string]float32, len(scales))
	for i, s := range scales {
		if !(s >= 0) || s-s != 0 {
			return nil, fmt.Errorf("%s: %s gives %q a scale of %v", src.Name(), model.StaticScalesKey, linears[i], s)
		}
		byName[linears[i]] = s
	}
	return byName, nil
}

// install replaces the products of a layer's linears.
func (a *activations) install(l *model.Layer) error {
	for _, lin := range l.Linears() {
		if lin.Role != model.RoleLinear {
			continue
		}
		if a.mode == Q8 {
			if err := installQ8(lin); err != nil {
				return fmt.Errorf("eval: %w", err)
			}
			continue
		}
		matmul, err := a.matmul(lin)
		if err != nil {
			return fmt.Errorf("eval: %w", err)
		}
		lin.MatMul = matmul
	}
	return nil
}

// installQ8 makes a linear multiply as Q8 says.
func installQ8(lin *model.Linear) error {
	switch {
	case lin.W.Format.Levels != nil:
	case lin.In%ggml.Q8_0.BlockLen != 0:
		return nil
	default:
		w, err := lin.Matrix()
		if err != nil {
			return err
		}
		lin.W = kernels.Weights{Rows: lin.Out, Cols: lin.In, Format: &ggml.Q8_0.Format,
			Data: ggml.Q8_0.PackWeight(quant.RTN(w, nil, ggml.Q8_0.Grid))}
	}
	lin.Q8 = true
	return nil
}

// maxColumns keeps sums of eight-bit products within 32 bits.
const maxColumns = 1<<17 - 1

func (a *activations) matmul(lin *model.Linear) (func(dst, x *tensor.Matrix), error) {
	if lin.In > maxColumns {
		return nil, fmt.Errorf("tensor %q: %d columns, products in integers take at most %d", lin.Name, lin.In, maxColumns)
	}
	if a.mode == LLMInt8 {
		w, err := lin.Matrix()
		if err != nil {
			return nil, err
		}
		return int8outlier.New(w, a.outliers[lin.ID()]).MatMul, nil
	}
	w, err := q8Weights(lin)
	if err != nil {
		return nil, err
	}
	round := func(codes *i8.Matrix, x *tensor.Matrix) { quant.Int8Rows(codes, x, nil) }
	if a.mode == Int8Static {
		scale, ok := a.scales[lin.ID()]
		if !ok {
			return nil, fmt.Errorf("tensor %q: the metadata has no scale for its input", lin.ID())
		}
		round = func(codes *i8.Matrix, x *tensor.Matrix) { quant.Int8Static(codes, x, scale) }
	}
	return func(dst, x *tensor.Matrix) {
		codes := i8.New(x.Rows, x.Cols, x.Cols)
		round(codes, x)
		i8.MatMul(dst, codes, w)
	}, nil
}

// q8Weights returns a linear's weights in eight bits: those of Q8_0 as they are, others rounded to it or, where its
// block does not divide the columns, with one scale for a row.
func q8Weights(lin *model.Linear) (*i8.Matrix, error) {
	t := ggml.Q8_0
	if lin.W.Format.Name != t.Name {
		w, err := lin.Matrix()
		if err != nil {
			return nil, err
		}
		if lin.In%t.BlockLen != 0 {
			codes := i8.New(lin.Out, lin.In, lin.In)
			quant.Int8Rows(codes, w, nil)
			return codes, nil
		}
		return quant.RTN(w, nil, t.Grid).Int8(), nil
	}
	stored, err := lin.Weights()
	if err != nil {
		return nil, err
	}
	return t.ParseWeight(stored.Data, lin.Out, lin.In).Int8(), nil
}

// findOutliers runs the first tokens of the text through the model in floating point, and returns the outlier features
// of every linear's input.
func findOutliers(ctx context.Context, m *model.Model, p *plan, c int8outlier.Criteria) (map[string][]int, error) {
	first := *p
	first.chunks = min(p.chunks, max(1, outlierTokens/p.context))
	first.progress = silent{}
	r := newRun(m)
	defer r.close()
	if err := r.embed(&first); err != nil {
		return nil, err
	}
	collector := int8outlier.Collector{Criteria: c}
	inputs := map[string]string{} // by linear
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			return nil, err
		}
		for _, s := range l.Sites() {
			for _, lin := range s.Linears {
				inputs[lin.ID()] = s.ID()
			}
		}
		err = r.each(func(_, _ int, x *tensor.Matrix) error {
			st := r.states[0]
			st.Enter(m, x, p.context)
			return l.Run(ctx, st, 0, len(l.Stages), func(s *model.Site, in *tensor.Matrix, _ []int) error {
				if in.Rows > 0 { // but for an expert that none of these tokens reaches
					collector.Observe(s.ID(), s.Shares, in)
				}
				return nil
			})
		})
		l.Release()
		if err != nil {
			return nil, err
		}
	}
	outliers := map[string][]int{}
	for linear, input := range inputs {
		var err error
		if outliers[linear], err = withRecorded(m, linear, collector.Features(input)); err != nil {
			return nil, err
		}
	}
	return outliers, nil
}

// withRecorded adds the outlier features that the model's metadata records for a linear.
func withRecorded(m *model.Model, name string, features []int) ([]int, error) {
	v, ok := m.Source.Meta(model.OutliersPrefix + name)
	if !ok {
		return features, nil
	}
	recorded, ok := v.([]uint32)
	if !ok {
		return nil, fmt.Errorf("%s: %s%s is of type %T, not []uint32", m.Source.Name(), model.OutliersPrefix, name, v)
	}
	tensorName, _, _ := strings.Cut(name, "[")
	cols := m.Tensor(tensorName).Cols()
	is := make([]bool, cols)
	for _, j := range features {
		is[j] = true
	}
	for _, j := range recorded {
		if int64(j) >= int64(cols) {
			return nil, fmt.Errorf("%s: %s%s names column %d of %d", m.Source.Name(), model.OutliersPrefix, name, j, cols)
		}
		is[j] = true
	}
	var all []int
	for j, yes := range is {
		if yes {
			all = append(all, j)
		}
	}
	return all, nil
}
