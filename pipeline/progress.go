package pipeline

import (
	"context"
	"time"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/model"
)

// work is what an attempt's progress is counted in: nanoseconds that the model of cost predicts, on this machine if its speeds were
// measured. The zero value counts weights.
type work struct {
	weight    map[string]float64 // for a weight of a tensor
	gradients float64            // for the whole pass
	layers    float64            // seconds for all else; 0: the work folder is not told
}

// usual are about the speeds of a machine that nobody has measured: what counts is how they compare.
var usual = Speeds{Products: 400e9, Float32: 100e9, Weight: 80e-9, Column: 25e-12, Feature: 2e-9, Disk: 1e9}

// longRun is the least time of a run that is worth the second in which speeds are measured.
const longRun = time.Minute

// SpeedsOfLongRun measures this machine if a run takes so long that a second does not matter; nil if it does not, or if that fails.
// A glance at the speed of products tells, as the rest of the machine is about as fast.
func (p *Plan) SpeedsOfLongRun(ctx context.Context, m *model.Model, tokens, seqLen int, dir string) *Speeds {
	s := usual
	slower := usual.Products / glance()
	s.Products, s.Float32, s.Weight, s.Column, s.Feature = s.Products/slower, s.Float32/slower, s.Weight*slower, s.Column*slower, s.Feature*slower
	if p.cost(m, tokens, seqLen, 1, s).Seconds < longRun.Seconds() {
		return nil
	}
	s, _, err := p.MeasureSpeeds(ctx, m, tokens, seqLen, dir, nil)
	if err != nil {
		return nil
	}
	return &s
}

// begin tells Progress what the attempt does: all of the pass of gradients and of the layers, until it turns out to be done.
func (t *task) begin(stage string) {
	if t.m == nil {
		t.opt.Progress.Stage(stage, t.plan.Elements())
		return
	}
	s := usual
	if t.opt.Speeds != nil {
		s = *t.opt.Speeds
	}
	set := t.opt.Calib
	c := t.plan.cost(t.m, set.Tokens(), set.SeqLen, 1, s)
	t.work = work{weight: map[string]float64{}, gradients: 1e9 * c.gradients}
	weights := map[int]int{} // of the layers, and -1 outside them, that are calibrated
	for i := range t.plan.Tensors {
		if p := &t.plan.Tensors[i]; t.calibrates(p) {
			weights[ggml.ParseName(p.Name).Layer] += p.Elements()
		}
	}
	var total float64
	for i := range t.plan.Tensors {
		p := &t.plan.Tensors[i]
		each := s.Feature // decoded and rounded
		if layer := ggml.ParseName(p.Name).Layer; t.calibrates(p) {
			seconds := c.head
			if layer >= 0 {
				seconds = c.layers[layer]
			}
			each = seconds / float64(weights[layer])
		}
		t.work.weight[p.Name] = 1e9 * each
		total += 1e9 * each * float64(p.Elements())
	}
	t.opt.Progress.Stage(stage, int64(total+t.work.gradients))
	if t.opt.Speeds == nil {
		return
	}
	t.opt.Progress.Expect(time.Duration(total + t.work.gradients))
	if t.kept != nil {
		t.work.layers = 1e-9 * total
		t.kept.done.Expected = 1e-9 * (total + t.work.gradients)
	}
}

// counts is what progress counts for so many weights of a tensor.
func (t *task) counts(of *Tensor, weights int) int64 {
	if t.work.weight == nil {
		return int64(weights)
	}
	return int64(t.work.weight[of.Name] * float64(weights))
}

// Of the pass of gradients the way forth through all layers is so much, and the way back the rest.
const forthShare = 0.25

// forthDone says that the pass of gradients has come through one more layer.
func (t *task) forthDone() { t.gradientsDone(forthShare / float64(t.m.Layers())) }

// backDone says that it has come back through one more.
func (t *task) backDone() { t.gradientsDone((1 - forthShare) / float64(t.m.Layers())) }

func (t *task) gradientsDone(share float64) { t.opt.Progress.Add(int64(share * t.work.gradients)) }

// withoutGradients says that the attempt needs no pass of gradients any more.
func (t *task) withoutGradients() {
	t.opt.Progress.Skip(int64(t.work.gradients))
	t.work.gradients = 0
}
