package model

import (
	"context"
	"fmt"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/q8"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// Linear computes y = W·x + b.
type Linear struct {
	Name    string // the weight's tensor: "blk.0.attn_q.weight"
	Expert  int    // of the experts that one tensor holds, which one; −1: it is the whole tensor
	Role    Role
	Product bool // the output meets another's in a product, as queries do keys
	Out, In int  // W is Out×In
	// W are the weights as the source stores them. Their Data is nil where they are fetched when they are used: see Weights.
	W kernels.Weights
	// F32, where not nil, replaces W: the values that quantization chose.
	F32  *tensor.Matrix
	Bias []float32 // Out values, or nil
	// MatMul, where not nil, replaces both: it sets dst = x·Wᵀ, in integers for one.
	MatMul func(dst, x *tensor.Matrix)
	// Q8 says that products with W round their inputs, and are in integers: see q8.MatMul.
	Q8 bool

	tensor *ggml.Tensor
	f32    *tensor.Matrix // the values of W, which Layer.Decode keeps
	first  int            // row of the tensor that row 0 is: see Part
	layer  *Layer         // that fetches the weights where W has no Data, and learns why it cannot
}

// First is the row of the tensor that row 0 is: not 0 for experts.
func (l *Linear) First() int { return l.first }

// ID is the linear's name in the model: its tensor's, and the expert's number if there are several in one.
func (l *Linear) ID() string {
	if l.Expert < 0 {
		return l.Name
	}
	return ggml.ExpertName(l.Name, l.Expert)
}

// Weights returns W with its data. Those of an expert that the source would have to copy are not held by the layer (RowCopier):
// each call fetches them anew, and they are garbage when the caller has done with them. So memory is bounded by the experts that
// are multiplied with at a time. It may be called from several goroutines.
func (l *Linear) Weights() (kernels.Weights, error) {
	if l.held() {
		return l.W, nil
	}
	w := l.W
	t, err := l.layer.m.someRows(l)
	if err != nil {
		l.layer.fail(err)
		return w, err
	}
	w.Data = t.Data
	return w, nil
}

// held says that W has its data.
func (l *Linear) held() bool { return l.W.Data != nil || l.layer == nil }

// exact sets dst = x·Wᵀ + b without rounding x, as a router's choice demands.
func (l *Linear) exact(dst, x *tensor.Matrix) {
	if l.F32 != nil {
		gemm.MatMulF32(dst, x, l.F32)
	} else if w, err := l.Weights(); err == nil {
		gemm.MatMul(dst, x, &w, kernels.F32)
	} else {
		dst.Zero()
	}
	l.addBias(dst)
}

// Apply sets dst = x·Wᵀ + b; x is tokens×In, dst tokens×Out.
func (l *Linear) Apply(dst, x *tensor.Matrix, p kernels.Precision) {
	l.product(dst, x, p)
	l.addBias(dst)
}

// product sets dst = x·Wᵀ, or to zeros where the weights cannot be fetched, which the layer's walk reports then.
func (l *Linear) product(dst, x *tensor.Matrix, p kernels.Precision) {
	switch {
	case l.MatMul != nil:
		l.MatMul(dst, x)
	case l.F32 != nil:
		gemm.MatMulF32(dst, x, l.F32)
	default:
		w, err := l.Weights()
		switch {
		case err != nil:
			dst.Zero()
		case l.Q8:
			q8.MatMul(x, kernels.Product{Dst: dst, W: &w})
		default:
			gemm.MatMul(dst, x, &w, p)
		}
	}
}

// stored says that the source's weights are used, so that a kernel may take them together with others.
func (l *Linear) stored() bool { return l.MatMul == nil && l.F32 == nil }

// applyAll applies linears that share the input x, each to its dst.
func applyAll(x *tensor.Matrix, p kernels.Precision, lins []*Linear, dsts ...*tensor.Matrix) {
	var products, rounded []kernels.Product
	for i, l := range lins {
		if !l.stored() {
			l.Apply(dsts[i], x, p)
			continue
		}
		w, err := l.Weights()
		switch pr := (kernels.Product{Dst: dsts[i], W: &w}); {
		case err != nil:
			dsts[i].Zero()
		case l.Q8:
			rounded = append(rounded, pr)
		default:
			products = append(products, pr)
		}
	}
	gemm.MatMulMany(x, p, products...)
	q8.MatMul(x, rounded...)
	for i, l := range lins {
		if l.stored() {
			l.addBias(dsts[i])
		}
	}
}

func (l *Linear) addBias(dst *tensor.Matrix) {
	if l.Bias == nil {
		return
	}
	byRows(dst.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			vector.Axpy(dst.Row(t), 1, l.Bias)
		}
	})
}

// Matrix returns a copy of the weights in float32. A weight that is not finite is an error.
func (l *Linear) Matrix() (*tensor.Matrix, error) {
	if l.F32 != nil {
		return l.F32.Clone(), nil
	}
	w, err := l.Weights()
	if err != nil {
		return nil, err
	}
	m := tensor.New(l.Out, l.In)
	unpackTo(m, &w)
	return m, checkFinite(l.Name, m.Data, l.In, l.first)
}

// unpackTo sets m to the values of w.
func unpackTo(m *tensor.Matrix, w *kernels.Weights) {
	kernels.Parallel(w.Rows, 16, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			unpack.F32(w.Format, m.Row(r), w.Row(r))
		}
	})
}

// BiasName is the name that the bias's tensor has, whether there is one or not.
func (l *Linear) BiasName() string { return biasName(l.Name) }

func biasName(weight string) string { return strings.TrimSuffix(weight, "weight") + "bias" }

// Part returns rows [lo,hi) of a linear that nothing has replaced, as a linear of its own that shares the weights, or fetches those
// rows when they are used.
func (l *Linear) Part(lo, hi int) *Linear {
	p := &Linear{Name: l.Name, Expert: l.Expert, Role: l.Role, Out: hi - lo, In: l.In, W: kernels.Weights{
		Rows: hi - lo, Cols: l.In, Format: l.W.Format,
	}, first: l.first + lo, layer: l.layer}
	if l.held() {
		row := l.W.Format.RowBytes(l.In)
		p.W.Data = l.W.Data[lo*row : hi*row]
	}
	if l.Bias != nil {
		p.Bias = l.Bias[lo:hi]
	}
	return p
}

// checkFinite names the first NaN or infinity of rows of cols values, the first of which is row first of the tensor; cols
// is 0 for a vector.
func checkFinite(name string, data []float32, cols, first int) error {
	for i, v := range data {
		switch {
		case v-v == 0: // neither NaN nor infinite
		case cols == 0:
			return notFinite(name, true, 0, i, v)
		default:
			return notFinite(name, false, first+i/cols, i%cols, v)
		}
	}
	return nil
}

func notFinite(name string, vector bool, row, col int, v float32) error {
	if vector {
		return WeightsErrorf("tensor %q: element %d is %v", name, col, v)
	}
	return WeightsErrorf("tensor %q: element [%d %d] is %v", name, row, col, v)
}

// CheckWeights looks for a weight that is not finite, and names the first. It reads all of them, which is for finding out
// why a prediction is not finite.
func (m *Model) CheckWeights(ctx context.Context) error {
	for _, info := range m.Source.Tensors() {
		t, err := m.tensor(info.Name)
		if err != nil {
			return err
		}
		row := make([]float32, t.Cols())
		for r := range t.Rows() {
			if err := ctx.Err(); err != nil {
				return err
			}
			unpack.F32(&t.Type.Format, row, t.Data[r*t.Type.RowBytes(t.Cols()):][:t.Type.RowBytes(t.Cols())])
			for j, v := range row {
				if v-v != 0 {
					return fmt.Errorf("model: %s: %w", m.Source.Name(), notFinite(t.Name, len(t.Shape) == 1, r, j, v))
				}
			}
		}
		m.Source.Release(t)
	}
	return nil
}

// someRows fetches the rows of a tensor that are l's, of a RowSource.
func (m *Model) someRows(l *Linear) (*ggml.Tensor, error) {
	t, err := m.Source.(RowSource).Rows(l.Name, l.first, l.first+l.Out)
	if err == nil && len(t.Data) != l.Out*t.Type.RowBytes(l.In) {
		err = fmt.Errorf("%s: tensor %q: rows %d to %d have %d bytes", m.Source.Name(), l.Name, l.first, l.first+l.Out, len(t.Data))
	}
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	return t, nil
}

// tensor fetches a tensor's data and checks that it is all there.
func (m *Model) tensor(name string) (*ggml.Tensor, error) {
	t, err := m.Source.Tensor(name)
	if err != nil {
		return nil, fmt.Errorf("model: %w", err)
	}
	if int64(len(t.Data)) != t.Bytes() {
		return nil, fmt.Errorf("model: %s: tensor %q: %s %v needs %d bytes, there are %d",
			m.Source.Name(), name, t.Type.Name, t.Shape, t.Bytes(), len(t.Data))
	}
	return t, nil
}

// vector fetches a norm or a bias as float32 values, which must be finite.
func (m *Model) vector(name string) ([]float32, error) {
	t, err := m.tensor(name)
	if err != nil {
		return nil, err
	}
	defer m.Source.Release(t)
	v := make([]float32, t.Elements())
	unpack.F32(&t.Type.Format, v, t.Data)
	if err := checkFinite(name, v, 0, 0); err != nil {
		return nil, fmt.Errorf("model: %s: %w", m.Source.Name(), err)
	}
	return v, nil
}

// byRows splits work on rows of activations over the processors.
func byRows(n int, f func(lo, hi int)) {
	const grain = 16 // rows: some microseconds of work at the least
	kernels.Parallel(n, grain, f)
}
