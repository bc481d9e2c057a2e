package imatrix

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/tensor"
)

// Options says how sums are collected.
type Options struct {
	// Head sums the inputs of the head too, which llama-imatrix leaves out unless told --process-output.
	Head bool
	// Memory bounds the bytes of hidden states kept in memory; more goes to a temporary file in TempDir ("": the system's). 0: no
	// bound.
	Memory   int64
	TempDir  string
	Progress Progress // may be nil
}

// Progress is told how far the sums are.
type Progress interface {
	Stage(name string, total int64) // total is in weights times tokens
	Item(name string)
	Add(n int64)
	Done()
}

type silent struct{}

func (silent) Stage(string, int64) {}
func (silent) Item(string)         {}
func (silent) Add(int64)           {}
func (silent) Done()               {}

// batchTokens is how many tokens go through a layer together.
const batchTokens = 4096

// Collect takes calibration text through a model and sums the squares of the linears' inputs, in float64. It does not depend on the
// number of processors.
func Collect(ctx context.Context, m *model.Model, set *calib.Set, opt Options) (*Matrix, error) {
	if opt.Progress == nil {
		opt.Progress = silent{}
	}
	defer opt.Progress.Done()
	seqLen := set.SeqLen
	if err := m.CheckLength(seqLen); err != nil {
		return nil, err
	}
	hidden, err := states.New(states.Fixed(len(set.Sequences), batchTokens/seqLen), seqLen, m.Width, opt.Memory, opt.TempDir)
	if err != nil {
		return nil, err
	}
	defer hidden.Close()
	var weights int64
	for i := range m.Layers() {
		weights += m.LayerWeights(i)
	}
	opt.Progress.Stage("importance matrix", weights*int64(set.Tokens()))
	c := collector{}
	st := m.NewState()
	// each takes f through all batches.
	each := func(f func(x *tensor.Matrix, lo, hi int) error) error {
		for b := range hidden.Batches() {
			x, err := hidden.Get(b)
			if err != nil {
				return err
			}
			lo, hi := hidden.Sequences(b)
			if err := f(x, lo, hi); err != nil {
				return err
			}
			if err := hidden.Put(b, x); err != nil {
				return err
			}
		}
		return nil
	}
	err = each(func(x *tensor.Matrix, lo, hi int) error {
		for k := lo; k < hi; k++ {
			if err := m.Embed(x.View((k-lo)*seqLen, (k-lo+1)*seqLen, 0, m.Width), set.Sequences[k], seqLen, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range m.Layers() {
		opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, m.Layers()))
		l, err := m.LoadLayer(i)
		if err != nil {
			return nil, err
		}
		err = each(func(x *tensor.Matrix, lo, hi int) error {
			st.Enter(m, x, seqLen)
			opt.Progress.Add(m.LayerWeights(i) * int64(x.Rows))
			return l.Run(ctx, st, 0, len(l.Stages), func(s *model.Site, in *tensor.Matrix, _ []int) error {
				c.add(s.Linears, in)
				return nil
			})
		})
		l.Release()
		if err != nil {
			return nil, fmt.Errorf("%s: layer %d: %w", m.Source.Name(), i, err)
		}
	}
	if opt.Head {
		h, err := m.LoadHead()
		if err != nil {
			return nil, err
		}
		defer h.Release()
		in := tensor.New(0, 0)
		err = each(func(x *tensor.Matrix, lo, hi int) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if in.Rows != x.Rows {
				in = tensor.New(x.Rows, m.Dim)
			}
			h.In(in, x)
			c.add([]*model.Linear{h.Linear}, in)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	sums := c.matrix(set)
	for i := range sums.Entries {
		if err := sums.Entries[i].check(); err != nil {
			return nil, fmt.Errorf("%s: %w", m.Source.Name(), err)
		}
	}
	return sums, nil
}

// sum is of a linear's inputs.
type sum struct {
	squares []float64
	tokens  int64
}

// collector has the sums of each tensor: one, or one of each expert.
type collector map[string][]*sum

// add adds what linears that share an input see of it; no row, where no token reaches an expert.
func (c collector) add(linears []*model.Linear, in *tensor.Matrix) {
	squares := squaresOf(in)
	for _, l := range linears {
		expert := max(l.Expert, 0)
		for len(c[l.Name]) <= expert {
			c[l.Name] = append(c[l.Name], &sum{squares: make([]float64, l.In)})
		}
		s := c[l.Name][expert]
		for j, v := range squares {
			s.squares[j] += v
		}
		s.tokens += int64(in.Rows)
	}
}

// squaresOf returns Σ x² of each column.
func squaresOf(in *tensor.Matrix) []float64 {
	squares := make([]float64, in.Cols)
	kernels.Parallel(in.Cols, 64, func(lo, hi int) {
		for i := range in.Rows {
			for j, v := range in.Row(i)[lo:hi] {
				squares[lo+j] += float64(v) * float64(v)
			}
		}
	})
	return squares
}

// matrix is all sums.
func (c collector) matrix(set *calib.Set) *Matrix {
	m := &Matrix{Chunks: len(set.Sequences), ChunkSize: set.SeqLen}
	for i := range set.Sources {
		m.Datasets = append(m.Datasets, set.Sources[i].Name())
	}
	for name, sums := range c {
		e := Entry{Name: name}
		for _, s := range sums {
			for _, v := range s.squares {
				e.Sums = append(e.Sums, float32(v))
			}
			e.Counts = append(e.Counts, s.tokens)
		}
		m.Entries = append(m.Entries, e)
	}
	slices.SortFunc(m.Entries, func(a, b Entry) int { return cmp.Compare(a.Name, b.Name) })
	return m
}
