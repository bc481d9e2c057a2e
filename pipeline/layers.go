package pipeline

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"

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
	s, err := newStream(r.m, set.Sequences, set.SeqLen, true, budget, r.tempDir, r.roundEmbeddings())
	if err != nil {
		return err
	}
	defer s.close()
	var original *stream
	if streams == 2 {
		if original, err = newStream(r.m, set.Sequences, set.SeqLen, false, budget, r.tempDir, nil); err != nil {
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
	switch needs := r.plan.Recipe.Method.Needs(); {
	case needs.Decides:
		err = r.choose(s, l, ol)
	case len(r.plan.Recipe.transforms()) > 0:
		err = r.transform(s, l, ol)
	}
	if err != nil {
		return err
	}
	for k := range l.Stages {
		if err := r.stage(s, original, l, ol, k); err != nil {
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
	return s.next(r.ctx, l)
}

// statsBytes bounds the Hessians of the experts that are quantized together.
const statsBytes = 2 << 30

// stage quantizes the linears of stage k. Of a stage with many sites some are taken at a time, each time in a pass of
// their own through the calibration text.
func (r *run) stage(s, original *stream, l, ol *model.Layer, k int) error {
	sites := l.Stages[k].Sites
	if len(sites) == 1 {
		in := []*quant.Stats{quant.NewStats(sites[0].In())}
		if err := r.observeStage(s, original, l, ol, k, 0, in, nil); err != nil {
			return err
		}
		if original != nil {
			original.passed(ol, k)
		}
		return r.quantizeSite(l, sites[0], in[0])
	}
	return r.experts(s, original, l, ol, k)
}

// observeStage takes the calibration text to stage k and adds up the inputs of its sites from first on. pooled, where not
// nil, gets those of all sites.
func (r *run) observeStage(s, original *stream, l, ol *model.Layer, k, first int, in []*quant.Stats, pooled *quant.Stats) error {
	stage := &l.Stages[k]
	err := s.visit(r.ctx, l, k, func(i int) error {
		for j, stats := range in {
			h, _ := stage.InputOf(s.st, first+j)
			if h.Rows == 0 {
				continue
			}
			stats.Observe(h)
			r.observe(stage.Sites[first+j], h)
		}
		if pooled != nil {
			for j := range stage.Sites {
				if h, _ := stage.InputOf(s.st, j); h.Rows > 0 && stage.Sites[j].Expert >= 0 {
					pooled.Observe(h)
				}
			}
		}
		if original == nil {
			return nil
		}
		return original.alongside(r.ctx, ol, k, i, s, l, first, in)
	})
	if err != nil {
		return err
	}
	for j, stats := range in {
		if err := checkInputs(stage.Sites[first+j].Name, stats.Importance()); err != nil {
			return err
		}
	}
	return nil
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

// quantizeSite quantizes linears that share an input, each in a goroutine of its own.
func (r *run) quantizeSite(l *model.Layer, site *model.Site, in *quant.Stats) error {
	solver := r.method(site.Linears[0].Name).Open(in)
	eg, ctx := errgroup.WithContext(r.ctx)
	for _, lin := range site.Linears {
		eg.Go(func() error {
			t := r.plan.Lookup(lin.Name)
			w, err := lin.Matrix()
			if err != nil {
				return fmt.Errorf("%s: %w", r.src.Name(), err)
			}
			if err := r.check(t, w); err != nil {
				return err
			}
			q, err := quantize(ctx, t, w, lin.Product, solver)
			if err != nil {
				return err
			}
			if r.plan.corrects(t) {
				bias := in.MeanShift(w, q.decoded)
				if lin.Bias != nil {
					vector.Axpy(bias, 1, lin.Bias)
				}
				r.mu.Lock()
				l.SetBias(lin, bias)
				r.mu.Unlock()
			}
			if err := r.out.WriteRows(t.Name, lin.First(), q.data); err != nil {
				return err
			}
			// From here on the forward pass sees what a reader of the file will see.
			lin.F32 = nil
			lin.W = kernels.Weights{Rows: lin.Out, Cols: lin.In, Format: &t.Type.Format, Data: q.data}
			r.quantized(t, lin, w, &q, in)
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
	damping float64        // of quant.Result
}

// quantize gives rows w of a tensor its type by a solver that knows the inputs.
func quantize(ctx context.Context, t *Tensor, w *tensor.Matrix, product bool, s quant.Solver) (rounding, error) {
	if t.Type.Grid == nil {
		data, decoded := encode(t.Type, w, nil)
		return rounding{target: w, data: data, decoded: decoded}, nil
	}
	res, err := s.Quantize(ctx, quant.Job{W: w, Grid: t.Type.Grid, Product: product})
	if err != nil {
		return rounding{}, err
	}
	decoded := tensor.New(w.Rows, w.Cols)
	res.Weight.DecodeTo(decoded)
	return rounding{target: res.Target, data: t.Type.PackWeight(res.Weight), decoded: decoded, damping: res.Damping}, nil
}
