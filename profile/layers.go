package profile

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// batchTokens is how many tokens at most go through a layer, and into the observers, together; of a small set fewer, so
// that there are some batches to tell from whether ranges settle.
const (
	batchTokens = 4096
	minBatches  = 16
)

type run struct {
	ctx context.Context
	m   *model.Model
	set *calib.Set
	opt Options
	p   *Profile

	importance map[string][]float32 // mean squares of the features, by input
	counts     []int8outlier.Counts // of each input
}

// watched is an input while its layer runs.
type watched struct {
	group model.Group
	stats *quant.Stats
	o     *calib.Observer
	s     calib.Stability
}

// layers takes the calibration text through the model, a layer at a time.
func (r *run) layers() error {
	m, seqLen := r.m, r.set.SeqLen
	perBatch := max(1, min(batchTokens/seqLen, len(r.set.Sequences)/minBatches))
	store, err := states.New(len(r.set.Sequences), seqLen, m.Dim, perBatch, r.opt.Memory, r.opt.TempDir)
	if err != nil {
		return err
	}
	defer store.Close()
	for b := range store.Batches() {
		x, err := store.Get(b)
		if err != nil {
			return err
		}
		lo, hi := store.Sequences(b)
		for k := lo; k < hi; k++ {
			if err := m.Embed(x.View((k-lo)*seqLen, (k-lo+1)*seqLen, 0, m.Dim), r.set.Sequences[k]); err != nil {
				return err
			}
		}
		if err := store.Put(b, x); err != nil {
			return err
		}
	}
	for i := range m.Layers() {
		r.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, m.Layers()))
		if err := r.layer(store, i); err != nil {
			return fmt.Errorf("%s: layer %d: %w", m.Source.Name(), i, err)
		}
	}
	return nil
}

// layer runs all batches through layer i, watches its inputs, and then rounds its linears.
func (r *run) layer(store *states.Store, i int) error {
	m := r.m
	l, err := m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	var in []*watched
	for _, g := range l.Groups() {
		features := g.Linears[0].In
		in = append(in, &watched{group: g, stats: quant.NewStats(features), o: calib.NewObserver(features)})
	}
	for b := range store.Batches() {
		x, err := store.Get(b)
		if err != nil {
			return err
		}
		lo, hi := store.Sequences(b)
		if err := r.batch(l, in, x, hi); err != nil {
			return err
		}
		if err := store.Put(b, x); err != nil {
			return err
		}
		r.opt.Progress.Add(m.LayerWeights() * int64((hi-lo)*r.set.SeqLen))
	}
	for _, w := range in {
		if err := r.finish(i, w); err != nil {
			return err
		}
	}
	return nil
}

// batch takes hidden states through the stages of a layer; with it, so many sequences have been.
func (r *run) batch(l *model.Layer, in []*watched, x *tensor.Matrix, sequences int) error {
	observe := func(w *watched, h *tensor.Matrix) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if err := w.o.Observe(h); err != nil {
			return fmt.Errorf("%s: %w", w.group.Name, err)
		}
		w.stats.Observe(h)
		w.s.Record(w.o, sequences)
		return nil
	}
	h := tensor.New(x.Rows, r.m.Dim)
	a := tensor.New(x.Rows, r.m.Heads*r.m.HeadDim)
	f := tensor.New(x.Rows, r.m.FFN)
	l.AttnIn(h, x)
	if err := observe(in[0], h); err != nil {
		return err
	}
	l.AttnCore(a, h, r.set.SeqLen)
	if err := observe(in[1], a); err != nil {
		return err
	}
	l.AttnOut(x, a)
	l.MLPIn(h, x)
	if err := observe(in[2], h); err != nil {
		return err
	}
	l.MLPCore(f, h)
	if err := observe(in[3], f); err != nil {
		return err
	}
	l.MLPOut(x, f)
	return nil
}

// finish describes an input and the linears that read it.
func (r *run) finish(layer int, w *watched) error {
	name := fmt.Sprintf("blk.%d.%s", layer, w.group.Name)
	h := w.o.Histogram
	settled, stable := w.s.Settled()
	in := Input{
		Name: name, Layer: layer, Distribution: distribution(w.o),
		FeatureRange: quantiles(slices.Clone(w.o.AbsMax)), LargestFeatures: largest(w.o),
		Clip:      Clip{MinMax: h.MinMax(), Percentile: h.Percentile(calib.DefaultPercentile), MSE: h.MSE(127), Entropy: h.Entropy(128)},
		Stability: Stability{stable, settled, append([]calib.Change{}, w.s.Changes...)},
	}
	r.counts = append(r.counts, w.o.Outliers)
	importance := w.stats.Importance()
	r.importance[name] = importance
	var weights []*tensor.Matrix
	for _, lin := range w.group.Linears {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		m, err := lin.Matrix()
		if err != nil {
			return err
		}
		weights = append(weights, m)
		o := calib.NewObserver(m.Cols)
		if err := o.Observe(m); err != nil {
			return fmt.Errorf("%s: %w", lin.Name, err)
		}
		t := r.typeFor(m.Cols)
		q := roundTrip(t, m, importance)
		r.p.Linears = append(r.p.Linears, Linear{
			Name: lin.Name, Input: name, Type: t.Name, Out: m.Rows, In: m.Cols, Weights: distribution(o),
			WeightError: quant.WeightError(m, q), OutputError: quant.OutputError(m, q, w.stats.H),
		})
	}
	in.Smoothing = r.smoothing(weights, w, importance)
	r.p.Inputs = append(r.p.Inputs, in)
	return nil
}

// largest returns the features with the largest magnitudes, the largest first.
func largest(o *calib.Observer) []Feature {
	const most = 8
	mean := o.MeanAbs()
	features := make([]Feature, len(mean))
	for i := range features {
		features[i] = Feature{i, float64(o.AbsMax[i]), float64(mean[i])}
	}
	slices.SortStableFunc(features, func(a, b Feature) int { return cmp.Compare(b.AbsMax, a.AbsMax) })
	return features[:min(most, len(features))]
}

// outliers finds the outlier features. Attention and MLP of all layers read the same features, the hidden states'; each
// other input is by itself.
func (r *run) outliers() {
	var shared []int8outlier.Counts
	hidden := func(i int) bool { return i%4 == 0 || i%4 == 2 } // attn_in, mlp_in
	for i, c := range r.counts {
		if hidden(i) {
			shared = append(shared, c)
		}
	}
	systematic := int8outlier.Criteria{}.Features(shared)
	for i, c := range r.counts {
		own := systematic
		if !hidden(i) {
			own = int8outlier.Criteria{}.Features([]int8outlier.Counts{c})
		}
		r.p.Inputs[i].OutlierFeatures = append([]int{}, own...)
	}
}
