package bench

import (
	"context"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// Operation is the time that one operation of a forward pass takes.
type Operation struct {
	Layer   int     `json:"layer"` // −1: outside the layers
	Name    string  `json:"name"`
	Type    string  `json:"type"` // of the weights, if it has any
	Seconds float64 `json:"seconds"`
	// Unpack is how long decoding the weights alone takes: a part of Seconds, repeated here by itself.
	Unpack float64 `json:"unpack_seconds"`
	GFLOPs float64 `json:"gflops"` // per second; 0 for operations without weights
}

// Model times every operation of a forward pass over one sequence of tokens, layer by layer.
func Model(ctx context.Context, m *model.Model, tokens []int32, report func(Operation)) error {
	n := len(tokens)
	x := tensor.New(n, m.Dim)
	if err := m.Embed(x, tokens); err != nil {
		return err
	}
	h, a, f := tensor.New(n, m.Dim), tensor.New(n, m.Heads*m.HeadDim), tensor.New(n, m.FFN)
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			return err
		}
		err = layer(ctx, m, l, x, h, a, f, func(op Operation) {
			op.Layer = i
			report(op)
		})
		l.Release()
		if err != nil {
			return err
		}
	}
	head, err := m.LoadHead()
	if err != nil {
		return err
	}
	defer head.Release()
	logits := tensor.New(n, m.Vocab)
	report(linear(ctx, m, head.Linear, "head", n, func() { head.Logits(logits, x) }, -1))
	return ctx.Err()
}

func layer(ctx context.Context, m *model.Model, l *model.Layer, x, h, a, f *tensor.Matrix, report func(Operation)) error {
	n := x.Rows
	plain := func(name string, run func()) { report(Operation{Name: name, Seconds: timeIt(ctx, run)}) }
	product := func(lin *model.Linear, in *tensor.Matrix) *tensor.Matrix {
		dst := tensor.New(n, lin.Out)
		report(linear(ctx, m, lin, lin.Name, n, func() { lin.Apply(dst, in, m.Precision) }, l.Index))
		return dst
	}
	plain("attn_norm", func() { l.AttnIn(h, x) })
	q, k, v := product(l.Q, h), product(l.K, h), product(l.V, h)
	plain("rope and attention", func() { l.Attend(a, q, k, v, n) })
	l.AttnCore(a, h, n) // q and k have been rotated many times
	product(l.O, a)
	l.AttnOut(x, a)
	plain("ffn_norm", func() { l.MLPIn(h, x) })
	gate, up := product(l.Gate, h), product(l.Up, h)
	plain("silu", func() { l.Gated(f, gate, up) })
	product(l.Down, f)
	l.MLPOut(x, f)
	return ctx.Err()
}

func linear(ctx context.Context, m *model.Model, lin *model.Linear, name string, tokens int, run func(), layer int) Operation {
	op := Operation{Layer: layer, Name: name, Type: lin.W.Format.Name, Seconds: timeIt(ctx, run)}
	op.GFLOPs = 2 * float64(tokens) * float64(lin.In) * float64(lin.Out) / op.Seconds / 1e9
	op.Unpack = timeIt(ctx, func() {
		kernels.Parallel(lin.Out, 16, func(lo, hi int) {
			row := make([]float32, lin.In)
			for i := lo; i < hi; i++ {
				unpack.F32(lin.W.Format, row, lin.W.Row(i))
			}
		})
	})
	return op
}
