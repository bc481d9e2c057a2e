package model

import (
	"context"
	"slices"
	"sync/atomic"

	"github.com/llmq/llmq/tensor"
)

// Layer is one transformer block. Its weights stay in the source's type and storage until Release.
type Layer struct {
	Index  int
	Stages []Stage

	m       *Model
	spans   []span
	linears []*Linear // in the order of the forward pass
	vectors map[string][]float32
	failed  atomic.Pointer[error] // the first that kept weights from being fetched
	// narrows says that attention can leave out the tokens that ForwardLast does not want.
	narrows bool
}

// Visit is shown the input of a site before its linears are applied: tokens×in. tokens are the batch's rows that reach
// it; nil: all.
type Visit func(s *Site, in *tensor.Matrix, tokens []int) error

// Run takes st through stages [from,to), the only walk through a layer. The stage from must be one that begins, or
// st.In its input. visit may be nil. Run stops between stages when ctx ends; st is then of no use.
func (l *Layer) Run(ctx context.Context, st *State, from, to int, visit Visit) error {
	for k := from; k < to; k++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := l.Look(st, k, visit); err != nil {
			return err
		}
		l.Stages[k].Apply(st)
		if err := l.Err(); err != nil {
			return err
		}
	}
	return nil
}

// Err says why weights could not be fetched when they were used, which is since the layer was loaded; nil if none were missing.
// What was computed with them then is of no use.
func (l *Layer) Err() error {
	if err := l.failed.Load(); err != nil {
		return *err
	}
	return nil
}

func (l *Layer) fail(err error) { l.failed.CompareAndSwap(nil, &err) }

// Look prepares the input of stage k, to which st has come, and visits its sites. The stage may then be applied.
func (l *Layer) Look(st *State, k int, visit Visit) error {
	stage := &l.Stages[k]
	if stage.Prepare != nil {
		stage.Prepare(st)
	}
	if visit == nil {
		return nil
	}
	for i, site := range stage.Sites {
		in, tokens := stage.InputOf(st, i)
		if err := visit(site, in, tokens); err != nil {
			return err
		}
	}
	return nil
}

// Forward takes hidden states x, tokens×Width, through the layer in place. It stops between stages when ctx ends; x is
// then of no use.
func (l *Layer) Forward(ctx context.Context, st *State, x *tensor.Matrix, seqLen int) error {
	return l.ForwardLast(ctx, st, x, seqLen, seqLen)
}

// ForwardLast is Forward for the last tokens of each sequence alone, the rest of x is unspecified: what a model's last
// layer has to do where only those are scored. The others still serve as keys and values.
func (l *Layer) ForwardLast(ctx context.Context, st *State, x *tensor.Matrix, seqLen, last int) error {
	st.Enter(l.m, x, seqLen)
	if l.narrows {
		st.last = last
	}
	if err := l.Run(ctx, st, 0, len(l.Stages), nil); err != nil {
		return err
	}
	if st.X.Rows < x.Rows {
		for i := range st.X.Rows {
			copy(x.Row(i/last*seqLen + seqLen - last + i%last)[:l.m.Dim], st.X.Row(i))
		}
	}
	return nil
}

// Block returns what computes, from an input of site, tokens×in, and from weights in place of its linears', all that is
// added to the residual stream until the next stage that begins. It returns nil where the site's own output is added as
// it is, or where the input alone does not decide. The sequences of x are seqLen long; st is overwritten.
func (l *Layer) Block(ctx context.Context, st *State, site *Site, seqLen int) func(x *tensor.Matrix, weights []*tensor.Matrix) *tensor.Matrix {
	k := slices.IndexFunc(l.Stages, func(s Stage) bool { return s.Sites[0] == site })
	if k < 0 || !l.Stages[k].Begins || len(l.Stages[k].Sites) > 1 {
		return nil
	}
	end := k + 1
	reads := l.Stages[k].ReadsAux
	for end < len(l.Stages) && !l.Stages[end].Begins {
		reads = reads || l.Stages[end].ReadsAux
		end++
	}
	if reads {
		return nil
	}
	return func(x *tensor.Matrix, weights []*tensor.Matrix) *tensor.Matrix {
		for i, lin := range site.Linears {
			own := lin.F32
			lin.F32 = weights[i]
			defer func() { lin.F32 = own }()
		}
		st.Enter(l.m, tensor.New(x.Rows, l.m.Width), seqLen)
		st.In = x
		l.Stages[k].Apply(st)
		if err := l.Run(ctx, st, k+1, end, nil); err != nil {
			return tensor.New(x.Rows, l.m.Dim) // cancelled, or l.Err: the caller ends too
		}
		return st.X
	}
}

// narrow leaves the last tokens of each sequence in st.X alone, in scratch memory.
func (st *State) narrow() {
	if st.last == st.SeqLen {
		return
	}
	st.X = st.lastOf("last", st.X)
}

// lastOf returns a copy of the last tokens of each sequence of x.
func (st *State) lastOf(name string, x *tensor.Matrix) *tensor.Matrix {
	y := st.Scratch(name, x.Rows/st.SeqLen*st.last, x.Cols)
	for i := range y.Rows {
		copy(y.Row(i), x.Row(i/st.last*st.SeqLen+st.SeqLen-st.last+i%st.last))
	}
	return y
}

// Linears lists the layer's linears in the order of the forward pass.
func (l *Layer) Linears() []*Linear { return l.linears }

// Sites lists the layer's sites in the order of the forward pass.
func (l *Layer) Sites() []*Site {
	var sites []*Site
	for i := range l.Stages {
		sites = append(sites, l.Stages[i].Sites...)
	}
	return sites
}

// Vectors returns the layer's norms, biases and other vectors by their tensors' names. They share the layer's storage.
func (l *Layer) Vectors() map[string][]float32 { return l.vectors }

// SetBias gives a linear of the layer a bias, or another one.
func (l *Layer) SetBias(lin *Linear, bias []float32) {
	lin.Bias = bias
	l.vectors[lin.BiasName()] = bias
}

// Rest says that the weights are not needed for a while: see Rester.
func (l *Layer) Rest() {
	src, ok := l.m.Source.(Rester)
	if !ok {
		return
	}
	for _, lin := range l.linears {
		if lin.tensor != nil {
			src.Rest(lin.tensor)
		}
	}
}

// Release gives the weights back to the source; the layer must not be used afterwards.
func (l *Layer) Release() {
	for _, lin := range l.linears {
		if lin.tensor != nil {
			l.m.Source.Release(lin.tensor)
			lin.tensor = nil
		}
	}
	l.linears, l.Stages, l.spans = nil, nil, nil
}
