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
	Product bool            // the output meets another's in a product, as queries do keys
	Out, In int             // W is Out×In
	W       kernels.Weights // as the source stores it
	// F32, where not nil, replaces W: the values that quantization chose.
	F32  *tensor.Matrix
	Bias []float32 // Out values, or nil
	// MatMul, where not nil, replaces both: it sets dst = x·Wᵀ, in integers for one.
	MatMul func(dst, x *tensor.Matrix)
	// Q8 says that products with W round their inputs, and are in integers: see q8.MatMul.
	Q8 bool

	tensor *ggml.Tensor
	first  int // row of the tensor that row 0 is: see Part
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

// exact sets dst = x·Wᵀ + b without rounding x, as a router's choice demands.
func (l *Linear) exact(dst, x *tensor.Matrix) {
	if l.F32 != nil {
		gemm.MatMulF32(dst, x, l.F32)
	} else {
		gemm.MatMul(dst, x, &l.W, kernels.F32)
	}
	l.addBias(dst)
}

// Apply sets dst = x·Wᵀ + b; x is tokens×In, dst tokens×Out.
func (l *Linear) Apply(dst, x *tensor.Matrix, p kernels.Precision) {
	l.product(dst, x, p)
	l.addBias(dst)
}

// product sets dst = x·Wᵀ.
func (l *Linear) product(dst, x *tensor.Matrix, p kernels.Precision) {
	switch {
	case l.MatMul != nil:
		l.MatMul(dst, x)
	case l.F32 != nil:
		gemm.MatMulF32(dst, x, l.F32)
	case l.Q8:
		q8.MatMul(x, kernels.Product{Dst: dst, W: &l.W})
	default:
		gemm.MatMul(dst, x, &l.W, p)
	}
}

// stored says that the source's weights are used, so that a kernel may take them together with others.
func (l *Linear) stored() bool { return l.MatMul == nil && l.F32 == nil }

// applyAll applies linears that share the input x, each to its dst.
func applyAll(x *tensor.Matrix, p kernels.Precision, lins []*Linear, dsts ...*tensor.Matrix) {
	var products, rounded []kernels.Product
	for i, l := range lins {
		pr := kernels.Product{Dst: dsts[i], W: &l.W}
		switch {
		case !l.stored():
			l.Apply(dsts[i], x, p)
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
	m := tensor.New(l.Out, l.In)
	kernels.Parallel(l.Out, 16, func(lo, hi int) {
		for r := lo; r < hi; r++ {
			unpack.F32(l.W.Format, m.Row(r), l.W.Row(r))
		}
	})
	return m, checkFinite(l.Name, m.Data, l.In, l.first)
}

// BiasName is the name that the bias's tensor has, whether there is one or not.
func (l *Linear) BiasName() string { return biasName(l.Name) }

func biasName(weight string) string { return strings.TrimSuffix(weight, "weight") + "bias" }

// Part returns rows [lo,hi) of a linear that nothing has replaced, as a linear of its own that shares the weights.
func (l *Linear) Part(lo, hi int) *Linear {
	row := l.W.Format.RowBytes(l.In)
	p := &Linear{Name: l.Name, Expert: l.Expert, Role: l.Role, Out: hi - lo, In: l.In, W: kernels.Weights{
		Rows: hi - lo, Cols: l.In, Format: l.W.Format, Data: l.W.Data[lo*row : hi*row],
	}, first: l.first + lo}
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
		return fmt.Errorf("tensor %q: element %d is %v", name, col, v)
	}
	return fmt.Errorf("tensor %q: element [%d %d] is %v", name, row, col, v)
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
