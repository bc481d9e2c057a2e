package model

import (
	"github.com/llmq/llmq/internal/hugepages"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/kernels/q8"
	"github.com/llmq/llmq/tensor"
)

// State is what a batch of tokens carries through a layer, and scratch memory for one goroutine. It is made once and
// entered for each batch.
type State struct {
	// X is the residual stream, tokens×Dim: sequences of SeqLen tokens, one after the other.
	X *tensor.Matrix
	// Aux are the features that hidden states have beside it, tokens×(Width−Dim); nil if there are none.
	Aux    *tensor.Matrix
	SeqLen int
	// In is the input of the next site.
	In *tensor.Matrix

	precision kernels.Precision
	table     bool // see Model.TableGELU
	last      int  // of each sequence, so many tokens are wanted: see Layer.ForwardLast
	routes    *routes
	only      [2]int                    // the experts that are computed, from the first to before the last; both 0: all
	kept      map[string]*tensor.Matrix // what stages leave for later ones of the same layer, beside In
	scratch   map[string][]float32
	passing   map[string][]float32 // the same that nothing is left in behind a stage: see NewStateBeside
	scope     string               // begins the names of scratch memory
	// Of a way forth that is to be taken back: where the residual stream was when each span began, the branch that the present span
	// consists of, and what branches have kept. nil: nobody keeps anything.
	inputs  []*tensor.Matrix
	keeping derivative
	results map[derivative]any
}

// NewState returns a state for m's layers. Its matrix products round as m.Precision says now.
func (m *Model) NewState() *State {
	return &State{precision: m.Precision, scratch: map[string][]float32{}, passing: map[string][]float32{}, kept: map[string]*tensor.Matrix{}}
}

// NewStateBeside returns a state that takes o's scratch memory where nothing is left in it behind a stage, the gates of MLPs: o must not be
// within a stage while the new one is.
func (m *Model) NewStateBeside(o *State) *State {
	st := m.NewState()
	st.passing = o.passing
	return st
}

// Enter begins with hidden states x, tokens×Width, which Layer.Run changes. They are sequences of seqLen tokens.
func (st *State) Enter(m *Model, x *tensor.Matrix, seqLen int) {
	st.precision, st.table = m.Precision, m.TableGELU
	st.X, st.Aux = x, nil
	if x.Cols > m.Dim {
		st.X, st.Aux = x.View(0, x.Rows, 0, m.Dim), x.View(0, x.Rows, m.Dim, x.Cols)
	}
	st.SeqLen, st.last, st.In, st.routes = seqLen, seqLen, nil, nil
	st.inputs, st.keeping, st.results = nil, nil, nil
	clear(st.kept) // whoever looks for another batch's finds nothing
}

// OnlyExperts has stages compute experts [lo,hi) alone, which suffices where only their sites are looked at; 0, 0: all.
func (st *State) OnlyExperts(lo, hi int) { st.only = [2]int{lo, hi} }

// computes says whether expert e is computed.
func (st *State) computes(e int) bool { return st.only[1] == 0 || e >= st.only[0] && e < st.only[1] }

// Scratch returns a matrix of unspecified content without padding, valid until the name is used again.
func (st *State) Scratch(name string, rows, cols int) *tensor.Matrix {
	return scratchIn(st.scratch, st.scope+name, rows, cols)
}

func scratchIn(m map[string][]float32, name string, rows, cols int) *tensor.Matrix {
	if cap(m[name]) < rows*cols {
		m[name] = hugepages.Make[float32](rows * cols)
	}
	return tensor.FromSlice(rows, cols, m[name][:rows*cols])
}

// Rest gives back scratch memory, until a batch is entered again.
func (st *State) Rest() {
	clear(st.scratch)
	clear(st.passing)
	clear(st.kept)
	st.X, st.Aux, st.In, st.routes = nil, nil, nil, nil
}

// sequences is the number of sequences in the batch.
func (st *State) sequences() int { return st.X.Rows / st.SeqLen }

// apply applies linears that share the input x, and returns a scratch matrix for each, named after it.
func (st *State) apply(x *tensor.Matrix, names []string, lins ...*Linear) []*tensor.Matrix {
	dsts := make([]*tensor.Matrix, len(lins))
	for i, l := range lins {
		dsts[i] = st.Scratch(names[i], x.Rows, l.Out)
	}
	applyAll(x, st.precision, lins, dsts...)
	return dsts
}

// add adds lin's result for in to x.
func (st *State) add(x *tensor.Matrix, lin *Linear, in *tensor.Matrix) {
	st.AddProduct(x, lin, in)
	lin.addBias(x)
}

// AddProduct adds lin's result for in, without its bias, to x: what a difference of inputs makes of the output.
func (st *State) AddProduct(x *tensor.Matrix, lin *Linear, in *tensor.Matrix) {
	if !lin.stored() {
		delta := st.Scratch("added product", x.Rows, x.Cols)
		lin.product(delta, in, st.precision)
		byRows(x.Rows, func(lo, hi int) {
			elementwise.Add(x.View(lo, hi, 0, x.Cols), delta.View(lo, hi, 0, delta.Cols))
		})
		return
	}
	w, err := lin.Weights()
	switch {
	case err != nil: // the layer's walk reports it
	case lin.Q8:
		q8.MatMulAdd(x, in, &w)
	default:
		gemm.MatMulAdd(x, in, &w, st.precision)
	}
}
