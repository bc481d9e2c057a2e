package bench

import (
	"context"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/unpack"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// Operation is the time that one operation of a forward pass takes. Those of a layer add up to its forward pass.
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
	x := tensor.New(n, m.Width)
	if err := m.Embed(x, tokens, n, nil); err != nil {
		return err
	}
	st := m.NewState()
	for i := range m.Layers() {
		l, err := m.LoadLayer(i)
		if err != nil {
			return err
		}
		st.Enter(m, x, n)
		for k := range l.Stages {
			if err = stage(ctx, m, l, st, k, report); err != nil {
				break
			}
		}
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
	run := func() { head.Logits(logits, x) }
	report(product{tensor: "head", uses: []use{{head.Linear, x, logits}}}.time(ctx, -1, run))
	return ctx.Err()
}

// stage times stage k of a layer, to which st has come, and applies it: what prepares its input, the products of its
// linears one by one, and what follows from these, which is the rest of the stage's time.
func stage(ctx context.Context, m *model.Model, l *model.Layer, st *model.State, k int, report func(Operation)) error {
	s := &l.Stages[k]
	name := s.Sites[0].Name
	if s.Prepare != nil {
		report(Operation{Layer: l.Index, Name: "before " + name, Seconds: timeIt(ctx, func() { s.Prepare(st) })})
	}
	products, err := products(l, st, k)
	if err != nil {
		return err
	}
	var linears float64
	for _, p := range products {
		op := p.time(ctx, l.Index, func() {
			for _, u := range p.uses {
				u.linear.Apply(u.out, u.in, m.Precision)
			}
		})
		linears += op.Seconds
		report(op)
	}
	in, x, before := st.In, st.X, st.X.Clone()
	apply := func() {
		st.In, st.X = in, x
		s.Apply(st)
	}
	whole := timeIt(ctx, apply)
	for t := range x.Rows { // to which the stage has added many times
		copy(x.Row(t), before.Row(t))
	}
	apply()
	if !s.Adds {
		// Products that share an input are faster together, so that nothing may be left.
		report(Operation{Layer: l.Index, Name: "after " + name, Seconds: max(0, whole-linears)})
	}
	if err := l.Err(); err != nil {
		return err
	}
	return ctx.Err()
}

// product is of one tensor: one linear's, or those of the experts that some token reaches.
type product struct {
	tensor string
	uses   []use
}

// use is a linear's input and where its output goes.
type use struct {
	linear  *model.Linear
	in, out *tensor.Matrix
}

// products lists the products of stage k by tensor.
func products(l *model.Layer, st *model.State, k int) ([]*product, error) {
	var list []*product
	byName := map[string]*product{}
	err := l.Look(st, k, func(s *model.Site, in *tensor.Matrix, _ []int) error {
		if in.Rows == 0 {
			return nil
		}
		if s.Expert >= 0 {
			in = in.Clone() // the next expert's inputs take its place
		}
		for _, lin := range s.Linears {
			p := byName[lin.Name]
			if p == nil {
				p = &product{tensor: lin.Name}
				byName[lin.Name] = p
				list = append(list, p)
			}
			p.uses = append(p.uses, use{lin, in, tensor.New(in.Rows, lin.Out)})
		}
		return nil
	})
	return list, err
}

// time measures run, which computes the products, and decoding their weights alone.
func (p product) time(ctx context.Context, layer int, run func()) Operation {
	op := Operation{Layer: layer, Name: p.tensor, Type: p.uses[0].linear.W.Format.Name, Seconds: timeIt(ctx, run)}
	for _, u := range p.uses {
		op.GFLOPs += 2 * float64(u.in.Rows) * float64(u.linear.In) * float64(u.linear.Out) / op.Seconds / 1e9
	}
	op.Unpack = timeIt(ctx, func() {
		for _, u := range p.uses {
			lin := u.linear
			w, err := lin.Weights() // fetched, where the source makes them anew, as for a product
			if err != nil {
				return // the layer keeps the error: see stage
			}
			kernels.Parallel(lin.Out, 16, func(lo, hi int) {
				row := make([]float32, lin.In)
				for i := lo; i < hi; i++ {
					unpack.F32(w.Format, row, w.Row(i))
				}
			})
		}
	})
	return op
}
