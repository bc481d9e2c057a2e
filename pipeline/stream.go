package pipeline

import (
	"errors"

	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// batchTokens is how many tokens pass through a stage together: enough for the matrix products to run at speed.
const batchTokens = 4096

// stream carries hidden states through the stages of one version of the model.
type stream struct {
	m      *model.Model
	seqLen int
	x      *states.Store // the input of the layer, later with the attention's result added
	a      *states.Store // the input of attn_output
	h, f   []float32     // scratch: a stage's input of Dim and of FFN features
}

// newStream embeds the calibration sequences.
func newStream(m *model.Model, seqs [][]int32, seqLen int, budget int64, tempDir string) (*stream, error) {
	perBatch := max(1, batchTokens/seqLen)
	s := &stream{m: m, seqLen: seqLen}
	var err error
	if s.x, err = states.New(len(seqs), seqLen, m.Dim, perBatch, budget, tempDir); err != nil {
		return nil, err
	}
	if s.a, err = states.New(len(seqs), seqLen, m.Heads*m.HeadDim, perBatch, budget, tempDir); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, s.each(func(i int, x *tensor.Matrix) error {
		lo, hi := s.x.Sequences(i)
		for k := lo; k < hi; k++ {
			if err := m.Embed(x.View((k-lo)*seqLen, (k-lo+1)*seqLen, 0, m.Dim), seqs[k]); err != nil {
				return err
			}
		}
		return s.x.Put(i, x)
	})
}

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

// attnOut computes and keeps the input of attn_output.
func (s *stream) attnOut(l *model.Layer, i int, x *tensor.Matrix) (*tensor.Matrix, error) {
	h := s.attnIn(l, x)
	a, err := s.a.Get(i)
	if err != nil {
		return nil, err
	}
	l.AttnCore(a, h, s.seqLen)
	return a, s.a.Put(i, a)
}

// mlpIn adds attn_output's result to the hidden states and returns the input of ffn_gate and ffn_up.
func (s *stream) mlpIn(l *model.Layer, i int, x *tensor.Matrix) (*tensor.Matrix, error) {
	a, err := s.a.Get(i)
	if err != nil {
		return nil, err
	}
	l.AttnOut(x, a)
	h := scratch(&s.h, x.Rows, s.m.Dim)
	l.MLPIn(h, x)
	return h, s.x.Put(i, x)
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
