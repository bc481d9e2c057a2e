package pipeline

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/llmq/llmq/awq"
	"github.com/llmq/llmq/gptq"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/kernels/vector"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// layers quantizes the linears of all layers in the order of the forward pass. Every linear is calibrated on inputs
// that come from everything quantized before it; a second stream of hidden states shows what the original model has in
// their place.
func (r *run) layers() error {
	set := r.opt.Calib
	streams := 1
	if r.plan.Recipe.original() && !r.opt.NoCorrection {
		streams = 2
	}
	budget := newStateBudget(r.opt.Memory)
	s, err := newStream(r.m, set.Sequences, set.SeqLen, true, budget, r.tempDir)
	if err != nil {
		return err
	}
	defer s.close()
	if t := r.plan.Lookup(embeddingName); t.Type != t.From {
		if err := s.roundTo(t.Type); err != nil {
			return err
		}
	}
	var original *stream
	if streams == 2 {
		if original, err = newStream(r.m, set.Sequences, set.SeqLen, false, budget, r.tempDir); err != nil {
			return err
		}
		defer original.close()
	}
	for i := range r.m.Layers() {
		r.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, r.m.Layers()))
		if err := r.layer(s, original, i); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	if r.calibratesHead() {
		return r.head(s, original)
	}
	return nil
}

// layer quantizes one layer and takes the hidden states through it.
func (r *run) layer(s, original *stream, index int) error {
	l, err := r.m.LoadLayer(index)
	if err != nil {
		return err
	}
	defer l.Release()
	if index+1 < r.m.Layers() || r.calibratesHead() {
		r.m.ReadAhead(index + 1)
	}
	var ol *model.Layer
	if original != nil {
		if ol, err = r.m.LoadLayer(index); err != nil {
			return err
		}
		defer ol.Release()
	}
	switch {
	case r.plan.Recipe.Method == Auto:
		err = r.choose(s, l, ol)
	case len(r.plan.Recipe.transforms()) > 0:
		err = r.transform(s, l, ol)
	}
	if err != nil {
		return err
	}
	var originals []model.Group
	if ol != nil {
		originals = ol.Groups()
	}
	for k, g := range l.Groups() {
		in := quant.NewStats(g.Linears[0].In)
		err := s.each(func(i int, x *tensor.Matrix) error {
			if err := r.ctx.Err(); err != nil {
				return err
			}
			h, err := s.input(l, g.Name, i, x)
			if err != nil {
				return err
			}
			in.Observe(h)
			r.observe(&g, h)
			if original == nil {
				return nil
			}
			return original.compare(ol, &originals[k], i, x, h, in)
		})
		if err != nil {
			return err
		}
		if err := checkInputs(g.Name, in.Importance()); err != nil {
			return err
		}
		if err := r.group(g.Linears, in); err != nil {
			return err
		}
	}
	if r.changesVectors() {
		if err := r.writeVectors(l); err != nil {
			return err
		}
	}
	if index == r.m.Layers()-1 && !r.calibratesHead() {
		return nil // nothing comes after the last layer
	}
	return s.each(func(i int, x *tensor.Matrix) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		return s.next(l, i, x)
	})
}

// checkInputs refuses a group's inputs if the mean square of a feature is not finite: every choice that goes by them would
// mean nothing.
func checkInputs(group string, meanSquares []float32) error {
	for j, v := range meanSquares {
		if v-v != 0 {
			return fmt.Errorf("the mean square of feature %d of %s's input is %v: the hidden states overflow float32", j, group, v)
		}
	}
	return nil
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
			if err := r.check(t, w); err != nil {
				return err
			}
			q, err := quantize(ctx, t, w, in, r.method(lin.Name), &factors)
			if err != nil {
				return err
			}
			if r.plan.corrects(t) {
				bias := in.MeanShift(w, q.decoded)
				if lin.Bias != nil {
					vector.Axpy(bias, 1, lin.Bias)
				}
				lin.Bias = bias
			}
			if err := r.out.WriteTensor(t.Name, q.data); err != nil {
				return err
			}
			// From here on the forward pass sees what a reader of the file will see.
			lin.F32 = nil
			lin.W = kernels.Weights{Rows: lin.Out, Cols: lin.In, Format: &t.Type.Format, Data: q.data}
			r.done(t, quant.OutputError(w, q.decoded, in.H), q.damping)
			r.rounded(t, q.target, q.decoded, q.data, in)
			return nil
		})
	}
	return eg.Wait()
}

// rounding is a weight, or rows of one, as a type stores them.
type rounding struct {
	target  *tensor.Matrix // what was rounded: the weight, after corrections
	data    []byte
	decoded *tensor.Matrix // what a reader of data sees
	damping float64        // of gptq.Factor, 0 where it was not used
}

// quantize gives rows w of a tensor its type by a method that knows the inputs.
func quantize(ctx context.Context, t *Tensor, w *tensor.Matrix, in *quant.Stats, method Method, factors *factorCache) (
	rounding, error) {
	var weight *quant.Weight
	z := rounding{target: w}
	switch g := t.Type.Grid; {
	case g != nil && method.gptq():
		f, err := factors.get(ctx, g)
		if err != nil {
			return z, err
		}
		z.target = f.Correct(w, in)
		if weight, err = f.Quantize(ctx, z.target, g, factors.opt); err != nil {
			return z, err
		}
		z.damping = f.Damping
	case g != nil && method == AWQ && clips(t.Name):
		var err error
		if weight, err = awq.Quantize(ctx, w, in, g); err != nil {
			return z, err
		}
	default:
		z.data, z.decoded = encode(t.Type, w, in.Importance())
		return z, nil
	}
	z.decoded = tensor.New(w.Rows, w.Cols)
	weight.DecodeTo(z.decoded)
	z.data = t.Type.PackWeight(weight)
	return z, nil
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
