package pipeline

import (
	"errors"

	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// batchTokens is how many tokens pass through a stage together: enough for the matrix products to run at speed.
const batchTokens = 4096

// stream carries hidden states through the stages of one version of the model.
type stream struct {
	m      *model.Model
	seqLen int
	x      *states.Store // the input of the layer, later with the attention's result added
	// a is the input of attn_output, kept until that is quantized and its result can be added to x; nil for the original
	// model, where finish adds each result at once.
	a    *states.Store
	h, f []float32 // scratch: a stage's input of Dim features, and of as many as attn_output or ffn_down has
}

// stateBudget is what is left of the memory for hidden states. A store of them is in memory, or in a file, as a whole.
type stateBudget struct {
	limited bool
	left    int64
}

// newStateBudget returns a budget of so many bytes; 0: no limit.
func newStateBudget(bytes int64) *stateBudget { return &stateBudget{bytes > 0, bytes} }

// fits says whether so many bytes may be taken, and takes them.
func (b *stateBudget) fits(bytes int64) bool {
	if b.limited && bytes > b.left {
		return false
	}
	b.left -= bytes
	return true
}

// newStream embeds the calibration sequences. keep says that the linears which a stage leads to are yet to be quantized.
func newStream(m *model.Model, seqs [][]int32, seqLen int, keep bool, budget *stateBudget, tempDir string) (*stream, error) {
	store := func(dim int) (*states.Store, error) {
		limit := int64(1)
		if budget.fits(stateBytes(len(seqs)*seqLen, dim)) {
			limit = 0
		}
		return states.New(len(seqs), seqLen, dim, max(1, batchTokens/seqLen), limit, tempDir)
	}
	s := &stream{m: m, seqLen: seqLen}
	var err error
	if s.x, err = store(m.Dim); err != nil {
		return nil, err
	}
	if keep {
		if s.a, err = store(m.Heads * m.HeadDim); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	err = s.each(func(i int, x *tensor.Matrix) error {
		lo, hi := s.x.Sequences(i)
		for k := lo; k < hi; k++ {
			if err := m.Embed(x.View((k-lo)*seqLen, (k-lo+1)*seqLen, 0, m.Dim), seqs[k]); err != nil {
				return err
			}
		}
		return s.x.Put(i, x)
	})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// stateBytes is the size of hidden states of dim features.
func stateBytes(tokens, dim int) int64 { return 4 * int64(tokens) * int64(dim) }

func (s *stream) close() error {
	var err error
	for _, st := range []*states.Store{s.x, s.a} {
		if st != nil {
			err = errors.Join(err, st.Close())
		}
	}
	return err
}

// each calls f for every batch of hidden states.
func (s *stream) each(f func(i int, x *tensor.Matrix) error) error {
	for i := range s.x.Batches() {
		x, err := s.x.Get(i)
		if err != nil {
			return err
		}
		if err := f(i, x); err != nil {
			return err
		}
	}
	return nil
}

func scratch(buf *[]float32, rows, cols int) *tensor.Matrix {
	if cap(*buf) < rows*cols {
		*buf = make([]float32, rows*cols)
	}
	return tensor.FromSlice(rows, cols, (*buf)[:rows*cols])
}

// input runs the stage before a group of linears for batch i of hidden states, x, and returns the group's input. Groups
// must be taken in the order of the forward pass, each for all batches.
func (s *stream) input(l *model.Layer, group string, i int, x *tensor.Matrix) (*tensor.Matrix, error) {
	switch group {
	case "attn_in":
		return s.attnIn(l, x), nil
	case "attn_out":
		return s.attnOut(l, i, x)
	case "mlp_in":
		return s.mlpIn(l, i, x)
	case "mlp_out":
		return s.mlpOut(l, x), nil
	}
	panic("pipeline: no stage " + group)
}

// attnIn returns the input of attn_q, attn_k and attn_v.
func (s *stream) attnIn(l *model.Layer, x *tensor.Matrix) *tensor.Matrix {
	h := scratch(&s.h, x.Rows, s.m.Dim)
	l.AttnIn(h, x)
	return h
}

// attnOut computes the input of attn_output, and keeps it if it will be asked for.
func (s *stream) attnOut(l *model.Layer, i int, x *tensor.Matrix) (*tensor.Matrix, error) {
	h := s.attnIn(l, x)
	if s.a == nil {
		a := scratch(&s.f, x.Rows, s.m.Heads*s.m.HeadDim)
		l.AttnCore(a, h, s.seqLen)
		return a, nil
	}
	a, err := s.a.Get(i)
	if err != nil {
		return nil, err
	}
	l.AttnCore(a, h, s.seqLen)
	return a, s.a.Put(i, a)
}

// mlpIn adds attn_output's result to the hidden states, if that has not been done, and returns the input of ffn_gate and
// ffn_up.
func (s *stream) mlpIn(l *model.Layer, i int, x *tensor.Matrix) (*tensor.Matrix, error) {
	if s.a != nil {
		a, err := s.a.Get(i)
		if err != nil {
			return nil, err
		}
		l.AttnOut(x, a)
		if err := s.x.Put(i, x); err != nil {
			return nil, err
		}
	}
	h := scratch(&s.h, x.Rows, s.m.Dim)
	l.MLPIn(h, x)
	return h, nil
}

// mlpOut returns the input of ffn_down.
func (s *stream) mlpOut(l *model.Layer, x *tensor.Matrix) *tensor.Matrix {
	h := scratch(&s.h, x.Rows, s.m.Dim)
	l.MLPIn(h, x)
	f := scratch(&s.f, x.Rows, s.m.FFN)
	l.MLPCore(f, h)
	return f
}

// next adds ffn_down's result: the hidden states are the next layer's input.
func (s *stream) next(l *model.Layer, i int, x *tensor.Matrix) error {
	l.MLPOut(x, s.mlpOut(l, x))
	return s.x.Put(i, x)
}

// compare adds to in what the original model, whose stream s is, has and another lacks that has hidden states x and inputs
// h of group g in batch i. It takes the stream past the group.
func (s *stream) compare(l *model.Layer, g *model.Group, i int, x, h *tensor.Matrix, in *quant.Stats) error {
	own, err := s.x.Get(i)
	if err != nil {
		return err
	}
	drift, err := s.input(l, g.Name, i, own)
	if err != nil {
		return err
	}
	if !g.Residual {
		subtract(drift, h)
		in.ObserveDrift(drift, h)
		return nil
	}
	missing := scratch(&s.h, x.Rows, x.Cols)
	copy(missing.Data, own.Data)
	subtract(missing, x)
	if err := s.finish(l, g, i, own, drift); err != nil {
		return err
	}
	subtract(drift, h)
	l.AddProduct(missing, g.Linears[0], drift)
	in.ObserveShortfall(missing, h)
	return nil
}

// finish adds the result that group g has for its input in to the hidden states x of batch i, if it is one to be added.
func (s *stream) finish(l *model.Layer, g *model.Group, i int, x, in *tensor.Matrix) error {
	if !g.Residual {
		return nil
	}
	l.Add(x, g.Linears[0], in)
	return s.x.Put(i, x)
}

// subtract sets a -= b.
func subtract(a, b *tensor.Matrix) {
	const grain = 64 // rows
	kernels.Parallel(a.Rows, grain, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			vector.Axpy(a.Row(i), -1, b.Row(i))
		}
	})
}
