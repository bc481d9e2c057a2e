package model

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/tensor"
)

// The derivative of the forward pass, activations only: a layer takes the gradient of some function of the predictions at
// its output to that at its input, and shows the gradient at the output of each of its linears on the way. Nothing is kept
// from the forward pass but the layer's input; what else the derivatives need is computed again, a branch at a time.

// Differential is what a gradient meets on its way back through a layer.
type Differential struct {
	// See is shown the gradient at the output of a linear, rows×Out, which is to be left alone; the linear is one of the layer's by its
	// ID. tokens are the batch's rows that reach it; nil: all.
	See func(lin *Linear, dy *tensor.Matrix, tokens []int) error
	// Only, where not nil, says of which of the sites' linears gradients are wanted. What does not lead to one is left out: other experts, what comes
	// before the first branch with such a linear, and the gradient at the layer's input.
	Only func(lin *Linear) bool
	// Opaque are the branches, named after their first site, that have no derivative here: the gradient goes around them, along
	// their residual connection, and the linears inside are not shown.
	Opaque []string

	aux    *tensor.Matrix // the gradient at State.Aux, which Attention.Keeps and Takes share; nil if there is none
	stream *tensor.Matrix // the gradient at State.X, for what of a branch does not look at its input
	tokens []int          // that reach the expert in whose derivatives the gradient is; nil: all
	unused *tensor.Matrix // the gradient that nobody wants: of Only, at the input of the first branch with a linear that is wanted
	fresh  *tensor.Matrix // a gradient that is 0 so far, which its memory does not say
	first  bool           // of Only: no branch before this one has a linear that is wanted
	err    error
}

// see shows the gradient at a linear's output.
func (d *Differential) see(lin *Linear, dy *tensor.Matrix) {
	if d.err == nil {
		d.err = d.See(lin, dy, d.tokens)
	}
}

// wants says whether the gradient of one of the linears, or of what comes before them, is wanted.
func (d *Differential) wants(lins ...*Linear) bool {
	return !d.first || slices.ContainsFunc(lins, func(l *Linear) bool { return l != nil && d.Only(l) })
}

// back shows dy, rows×Out, and adds what it makes of the gradient at lin's input to dx, rows×In.
func (d *Differential) back(st *State, lin *Linear, dx, dy *tensor.Matrix) {
	d.see(lin, dy)
	if d.unused == dx {
		return
	}
	if d.fresh == dx {
		d.fresh = nil
		gemm.SetNN(dx, 1, dy, lin.decoded(st), st.precision)
		return
	}
	gemm.NN(dx, 1, dy, lin.decoded(st), st.precision)
}

// starts makes dx 0, for a derivative of a branch that may add to it otherwise than by back.
func (d *Differential) starts(dx *tensor.Matrix, of derivative) {
	switch of.(type) {
	case *Attention, *MLP:
		d.fresh = dx
	default:
		zero(dx)
	}
}

// hasKept says whether a branch has kept of its way forth all that its derivative would make of its input, which then need not be
// normalised again.
func (st *State) hasKept(branch derivative) bool {
	switch branch.(type) {
	case *Attention, *MLP:
		return st.results[branch] != nil
	}
	return false
}

// decoded returns the weights in float32, in scratch memory where they are stored otherwise.
func (l *Linear) decoded(st *State) *tensor.Matrix {
	switch {
	case l.F32 != nil:
		return l.F32
	case l.f32 != nil:
		return l.f32
	}
	m := st.Scratch("back weights", l.Out, l.In)
	w, err := l.Weights()
	if err != nil {
		m.Zero() // the way back through the layer reports it
		return m
	}
	unpackTo(m, &w)
	return m
}

// Decode keeps the linears' weights in float32, which the way back takes: a layer through which many batches go decodes them once.
func (l *Layer) Decode() error {
	for _, lin := range l.linears {
		w, err := lin.Weights()
		if err != nil {
			return err
		}
		lin.f32 = tensor.New(lin.Out, lin.In)
		unpackTo(lin.f32, &w)
	}
	return nil
}

// span is a place where branches leave the residual stream and return to it: stages [from,to) of the layer.
type span struct {
	parts    []part
	from, to int
}

// has says whether a linear of the span is such a one.
func (s *span) has(is func(lin *Linear) bool) bool {
	in := func(site *Site) bool { return slices.ContainsFunc(site.Linears, is) }
	return slices.ContainsFunc(s.parts, func(p part) bool {
		return p.Branch.Out != nil && in(p.Branch.Out) ||
			slices.ContainsFunc(p.stages, func(st Stage) bool { return slices.ContainsFunc(st.Sites, in) })
	})
}

// part is a residual connection with the stages of its branch as the branch has them, without what composing a layer puts
// around them.
type part struct {
	Residual
	stages []Stage
}

func newPart(r Residual) part { return part{r, slices.Clone(r.Branch.Stages)} }

// Backward takes dx, tokens×Width, the gradient at the layer's output, to that at its input x, tokens×Width, in place. x is
// the layer's input as Forward gets it, and stays as it is. It stops between branches when ctx ends; dx is then of no use, and so it is
// with d.Only.
func (l *Layer) Backward(ctx context.Context, st *State, x, dx *tensor.Matrix, seqLen int, d *Differential) error {
	work := st.Scratch("back x", x.Rows, x.Cols)
	copyTo(work, 0, x)
	if err := l.forth(ctx, st, work, x, seqLen, len(l.spans)-1); err != nil {
		return err
	}
	return l.back(ctx, st, dx, d)
}

// Forth is Forward that keeps in st what BackFrom takes, until st is entered again: nothing is then computed twice.
func (l *Layer) Forth(ctx context.Context, st *State, x *tensor.Matrix, seqLen int) error {
	return l.forth(ctx, st, x, nil, seqLen, len(l.spans))
}

// BackFrom is Backward after Forth has taken the layer's input through it in forth; st has the scratch memory.
func (l *Layer) BackFrom(ctx context.Context, st, forth *State, dx *tensor.Matrix, d *Differential) error {
	at := *forth
	at.scratch, at.passing, at.scope = st.scratch, st.passing, st.scope
	return l.back(ctx, &at, dx, d)
}

// forth takes x through the first so many spans: all, or all but the last. input, where not nil, is another copy of x.
func (l *Layer) forth(ctx context.Context, st *State, x, input *tensor.Matrix, seqLen, spans int) error {
	st.Enter(l.m, x, seqLen)
	st.inputs, st.results = make([]*tensor.Matrix, len(l.spans)), map[derivative]any{}
	defer func() { st.scope, st.keeping = "", nil }()
	for i, s := range l.spans {
		if i == spans { // the last one, which nothing changes any more
			st.inputs[i] = st.X
			return nil
		}
		st.scope = fmt.Sprint("span ", i, " ") // what one span keeps is not for the next to use
		if i == 0 && input != nil {
			st.inputs[i] = input.View(0, input.Rows, 0, l.m.Dim)
		} else {
			st.inputs[i] = st.Scratch("input", st.X.Rows, st.X.Cols)
			copyTo(st.inputs[i], 0, st.X)
		}
		if st.keeping = nil; len(s.parts) == 1 {
			st.keeping = s.parts[0].Branch.Back
		}
		if err := l.Run(ctx, st, s.from, s.to, nil); err != nil {
			return err
		}
	}
	return nil
}

// back is Backward after forth.
func (l *Layer) back(ctx context.Context, st *State, dx *tensor.Matrix, d *Differential) error {
	grad := dx
	d.aux, d.unused, d.fresh, d.err, d.first = nil, nil, nil, nil, false
	from := 0 // the first branch with a linear that is wanted
	if d.Only != nil {
		if from = slices.IndexFunc(l.spans, func(s span) bool { return s.has(d.Only) }); from < 0 {
			return nil
		}
	}
	if st.Aux != nil {
		grad, d.aux = dx.View(0, dx.Rows, 0, l.m.Dim), dx.View(0, dx.Rows, l.m.Dim, dx.Cols)
	}
	for i := len(l.spans) - 1; i >= from; i-- {
		d.first = d.Only != nil && i == from
		if err := ctx.Err(); err != nil {
			return err
		}
		s := &l.spans[i]
		st.X = st.inputs[i]
		dy := grad
		if p := &s.parts[0]; len(s.parts) > 1 || p.LayerScale != nil || p.Branch.Out == nil {
			// Else the one part is done with dy before it changes grad.
			dy = st.Scratch("back dy", grad.Rows, grad.Cols)
			copyTo(dy, 0, grad)
		}
		for k := range s.parts {
			s.parts[k].back(st, d, grad, dy)
		}
		if err := l.Err(); err != nil {
			return err
		}
		if d.err != nil {
			return d.err
		}
	}
	return nil
}

// back adds to dx, the gradient at the residual stream st.X from which the branch starts, what the branch makes of dy, the
// gradient at the stream to which it returns. On entry dx is dy, or what other branches from the same place have added to it.
func (p *part) back(st *State, d *Differential, dx, dy *tensor.Matrix) {
	scale := float32(1)
	if p.Scale != 0 {
		scale = p.Scale
	}
	if p.LayerScale != nil && p.LayerScale.V != nil {
		// The stream itself is multiplied too: no branch shares its place with one that does that.
		scale *= p.LayerScale.V[0]
		for t := range dx.Rows {
			for j, v := range dx.Row(t) {
				dx.Row(t)[j] = v * p.LayerScale.V[0]
			}
		}
	}
	name := p.stages[0].Sites[0].Name
	kept := st.hasKept(p.Branch.Back)
	var h *tensor.Matrix
	if !kept || p.Post != nil {
		h = normed(st, "back norm", p.Pre)
	}
	dOut := dy
	if scale != 1 || p.Post != nil { // dy is what other branches from the same place go by, too
		dOut = st.Scratch("back branch", dy.Rows, dy.Cols)
		byRows(dy.Rows, func(lo, hi int) {
			for t := lo; t < hi; t++ {
				copy(dOut.Row(t), dy.Row(t))
				elementwise.Scale(dOut.Row(t), scale)
			}
		})
	}
	if p.Post != nil {
		p.Post.back(dOut, p.output(st, h), dOut)
		if !kept {
			h = normed(st, "back norm", p.Pre) // the branch may have used its scratch memory
		}
	}
	if p.Branch.Back == nil {
		if p.Branch.Out != nil {
			d.see(p.Branch.Out.Linears[0], dOut)
		}
		if !slices.Contains(d.Opaque, name) {
			d.Opaque = append(d.Opaque, name)
		}
		return
	}
	if site := p.Branch.Out; site != nil {
		lin := site.Linears[0]
		dz := st.Scratch("back out", dOut.Rows, lin.In)
		d.fresh = dz
		d.back(st, lin, dz, dOut)
		dOut = dz
	}
	dh := st.Scratch("back in", st.X.Rows, st.X.Cols)
	d.starts(dh, p.Branch.Back)
	st.In, d.stream = h, dx
	if d.first {
		d.unused = dh
	}
	p.Branch.Back.back(st, d, h, dOut, dh)
	if d.first {
		return
	}
	if p.Pre != nil {
		p.Pre.back(dh, st.X, dh)
	}
	byRows(dx.Rows, func(lo, hi int) {
		for t := lo; t < hi; t++ {
			vector.Axpy(dx.Row(t), 1, dh.Row(t))
		}
	})
}

// output returns the branch's output for its input h, before the norm that comes after it.
func (p *part) output(st *State, h *tensor.Matrix) *tensor.Matrix {
	st.In = h
	for i := range p.stages {
		if p.stages[i].Prepare != nil {
			p.stages[i].Prepare(st)
		}
		p.stages[i].Apply(st)
	}
	if p.Branch.Out == nil {
		return st.In
	}
	return st.apply(st.In, []string{"back output"}, p.Branch.Out.Linears[0])[0]
}

// back sets dx to the gradient at the norm's input x for that at its output, dy. dx may be dy.
func (n *Norm) back(dx, x, dy *tensor.Matrix) {
	byRows(x.Rows, func(lo, hi int) {
		n.rowsBack(dx.View(lo, hi, 0, dx.Cols), x.View(lo, hi, 0, x.Cols), dy.View(lo, hi, 0, dy.Cols))
	})
}

// rowsBack is back on one goroutine. LayerNorm's is, with s = 1/√(mean(c²)+eps), c = x − mean(x) and u = dy·W,
// dx = s·u − s³·c·mean(c·u), less its mean.
func (n *Norm) rowsBack(dx, x, dy *tensor.Matrix) {
	if !n.Layer {
		elementwise.RMSNormBack(dx, x, dy, n.W, n.Eps)
		return
	}
	for t := range x.Rows {
		in, grad, out := x.Row(t), dy.Row(t), dx.Row(t)
		count := float64(len(in))
		var mean float64
		for _, v := range in {
			mean += float64(v)
		}
		mean /= count
		var square, product, sum float64
		for i, v := range in {
			c, u := float64(v)-mean, float64(grad[i])*float64(n.W[i])
			square += c * c
			product += c * u
			sum += u
		}
		s := 1 / math.Sqrt(square/count+float64(n.Eps))
		along := s * s * s * product / count
		for i, v := range in {
			out[i] = float32(s*(float64(grad[i])*float64(n.W[i])-sum/count) - along*(float64(v)-mean))
		}
	}
}

// headsBack is back for heads, whose gradient dy is replaced. x and dy have no padding.
func (n *Norm) headsBack(x, dy *tensor.Matrix, headDim int) {
	if n.PerHead {
		byRows(x.Rows, func(lo, hi int) {
			for at := 0; at < x.Cols; at += headDim {
				one := Norm{W: n.W[at : at+headDim], Eps: n.Eps, Layer: n.Layer}
				d := dy.View(lo, hi, at, at+headDim)
				one.rowsBack(d, x.View(lo, hi, at, at+headDim), d)
			}
		})
		return
	}
	heads := x.Rows * x.Cols / headDim
	d := tensor.FromSlice(heads, headDim, dy.Data)
	n.back(d, tensor.FromSlice(heads, headDim, x.Data), d)
}
