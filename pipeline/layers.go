package pipeline

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/internal/states"
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

// layers quantizes the linears of all layers in the order of the forward pass. Every linear is calibrated on inputs
// that come from everything quantized before it.
func (r *run) layers(tempDir string) error {
	// Two stores live at a time and share the budget.
	s, err := newStream(r.m, r.opt.Calib.Sequences, r.opt.Calib.SeqLen, r.opt.Memory/2, tempDir)
	if err != nil {
		return err
	}
	defer s.close()
	for i := range r.m.Layers() {
		r.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, r.m.Layers()))
		if err := r.layer(s, i); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

func (r *run) layer(s *stream, index int) error {
	l, err := r.m.LoadLayer(index)
	if err != nil {
		return err
	}
	defer l.Release()
	for _, g := range l.Groups() {
		in := quant.NewStats(g.Linears[0].In)
		err := s.each(func(i int, x *tensor.Matrix) error {
			if err := r.ctx.Err(); err != nil {
				return err
			}
			var h *tensor.Matrix
			var err error
			switch g.Name {
			case "attn_in":
				h = s.attnIn(l, x)
			case "attn_out":
				h, err = s.attnOut(l, i, x)
			case "mlp_in":
				h, err = s.mlpIn(l, i, x)
			case "mlp_out":
				h = s.mlpOut(l, x)
			}
			if err != nil {
				return err
			}
			in.Observe(h)
			return nil
		})
		if err != nil {
			return err
		}
		if err := r.group(g.Linears, in); err != nil {
			return err
		}
	}
	if index == r.m.Layers()-1 {
		return nil // nothing comes after the last layer
	}
	return s.each(func(i int, x *tensor.Matrix) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		return s.next(l, i, x)
	})
}

// group quantizes linears that share an input, each in a goroutine of its own.
func (r *run) group(linears []*model.Linear, in *quant.Stats) error {
	factors := factorCache{h: in.H, opt: r.opt.GPTQ, byBlock: map[int]*gptq.Factor{}}
	eg, ctx := errgroup.WithContext(r.ctx)
	for _, lin := range linears {
		eg.Go(func() error {
			t := r.plan.Lookup(lin.Name)
			w, err := lin.Matrix()
			if err != nil {
				return fmt.Errorf("%s: %w", r.src.Name(), err)
			}
			if err := r.check(t, w, 0); err != nil {
				return err
			}
			var data []byte
			var decoded *tensor.Matrix
			var damping float64
			if g := t.Type.Grid; g != nil && r.plan.Recipe.Method == GPTQ {
				f, err := factors.get(ctx, g)
				if err != nil {
					return err
				}
				q, err := f.Quantize(ctx, w, g, r.opt.GPTQ)
				if err != nil {
					return err
				}
				damping = f.Damping
				decoded = tensor.New(w.Rows, w.Cols)
				q.DecodeTo(decoded)
				data = t.Type.PackWeight(q)
			} else {
				data, decoded = encode(t.Type, w, in.Importance())
			}
			if err := r.out.WriteTensor(t.Name, data); err != nil {
				return err
			}
			lin.F32 = decoded
			r.done(t, quant.OutputError(w, decoded, in.H), damping)
			return nil
		})
	}
	return eg.Wait()
}

// factorCache makes one GPTQ factor for all linears of a group whose types have blocks of the same length.
type factorCache struct {
	mu      sync.Mutex
	h       *tensor.Matrix
	opt     gptq.Options
	byBlock map[int]*gptq.Factor
}

func (c *factorCache) get(ctx context.Context, g *quant.Grid) (*gptq.Factor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.byBlock[g.Block]; f != nil {
		return f, nil
	}
	f, err := gptq.NewFactor(ctx, c.h, g, c.opt)
	if err != nil {
		return nil, err
	}
	c.byBlock[g.Block] = f
	return f, nil
}
