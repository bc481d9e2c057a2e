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
	"github.com/llmq/llmq/store"
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
	st  *model.State
	set *calib.Set
	opt Options
	p   *Profile

	importance map[string][]float32 // mean squares of the features, by input
	outlying   int8outlier.Collector
	standing   store.Standing
}

// watched is a site while its layer runs.
type watched struct {
	site   *model.Site
	stats  *quant.Stats
	o      *calib.Observer
	s      calib.Stability
	in     *quant.Inputs
	sample *tensor.Matrix // some of the inputs
	filled int            // rows of sample, where the site is an expert's
}

// layers takes the calibration text through the model, a layer at a time.
func (r *run) layers() error {
	m, seqLen := r.m, r.set.SeqLen
	if err := m.CheckLength(seqLen); err != nil {
		return err
	}
	perBatch := min(batchTokens/seqLen, len(r.set.Sequences)/minBatches)
	hidden, err := states.New(states.Fixed(len(r.set.Sequences), perBatch), seqLen, m.Width, r.opt.Memory, r.opt.TempDir)
	if err != nil {
		return err
	}
	defer hidden.Close()
	for b := range hidden.Batches() {
		x, err := hidden.Get(b)
		if err != nil {
			return err
		}
		lo, hi := hidden.Sequences(b)
		for k := lo; k < hi; k++ {
			x := x.View((k-lo)*seqLen, (k-lo+1)*seqLen, 0, m.Width)
			if err := m.Embed(x, r.set.Sequences[k], seqLen, nil); err != nil {
				return err
			}
		}
		if err := hidden.Put(b, x); err != nil {
			return err
		}
	}
	next, err := r.resume(hidden)
	if err != nil {
		return err
	}
	for i := next; i < m.Layers(); i++ {
		r.opt.Progress.Item(fmt.Sprintf("layer %d/%d", i+1, m.Layers()))
		if err := r.keep(hidden, i, func() error { return r.layer(hidden, i) }); err != nil {
			return fmt.Errorf("%s: layer %d: %w", m.Source.Name(), i, err)
		}
	}
	return nil
}

// layer runs all batches through layer i, watches its inputs, and then rounds its linears.
func (r *run) layer(hidden *states.Store, i int) error {
	m := r.m
	l, err := m.LoadLayer(i)
	if err != nil {
		return err
	}
	defer l.Release()
	sites := map[*model.Site]*watched{}
	var inOrder []*watched
	for _, s := range l.Sites() {
		w := r.watch(s)
		sites[s] = w
		inOrder = append(inOrder, w)
	}
	for b := range hidden.Batches() {
		x, err := hidden.Get(b)
		if err != nil {
			return err
		}
		lo, hi := hidden.Sequences(b)
		r.st.Enter(m, x, r.set.SeqLen)
		err = l.Run(r.ctx, r.st, 0, len(l.Stages), func(s *model.Site, in *tensor.Matrix, tokens []int) error {
			if in.Rows == 0 { // an expert that none of these tokens reaches
				return nil
			}
			return r.observe(sites[s], in, tokens, lo, hi)
		})
		if err != nil {
			return err
		}
		if err := hidden.Put(b, x); err != nil {
			return err
		}
		r.opt.Progress.Add(m.LayerWeights(i) * int64((hi-lo)*r.set.SeqLen))
	}
	for _, w := range inOrder {
		if err := r.finish(l, w); err != nil {
			return err
		}
	}
	return nil
}

// watch begins to watch a site.
func (r *run) watch(s *model.Site) *watched {
	n := s.In()
	seqs, length := r.sample()
	return &watched{site: s, stats: quant.NewStats(n), o: calib.NewObserver(n), in: quant.NewInputs(n),
		sample: tensor.New(seqs*length, n)}
}

// observe adds a site's input for sequences [lo,hi), or for some of their tokens.
func (r *run) observe(w *watched, in *tensor.Matrix, tokens []int, lo, hi int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if err := w.o.Observe(in); err != nil {
		return fmt.Errorf("%s: %w", w.site.Name, err)
	}
	w.stats.Observe(in)
	w.s.Record(w.o, hi)
	w.in.Observe(in)
	r.outlying.Observe(w.site.ID(), w.site.Shares, in)
	if tokens != nil {
		n := min(in.Rows, w.sample.Rows-w.filled)
		copyRows(w.sample, w.filled, in, 0, n)
		w.filled += n
		return nil
	}
	seqs, length := r.sample()
	for j := range seqs {
		if k := j * len(r.set.Sequences) / seqs; k >= lo && k < hi {
			copyRows(w.sample, j*length, in, (k-lo)*r.set.SeqLen, length)
		}
	}
	w.filled = w.sample.Rows
	return nil
}

// copyRows copies n rows of src, from row s on, to those of dst from row d on.
func copyRows(dst *tensor.Matrix, d int, src *tensor.Matrix, s, n int) {
	for i := range n {
		copy(dst.Row(d+i), src.Row(s+i))
	}
}

// finish describes an input and the linears that read it.
func (r *run) finish(l *model.Layer, w *watched) error {
	name := w.site.ID()
	in := Input{
		Name: name, Layer: w.site.Layer, Tokens: w.o.Tokens, Distribution: distribution(w.o),
		LargestFeatures: []Feature{}, OutlierFeatures: []int{}, Stability: Stability{Changes: []calib.Change{}},
	}
	if w.o.Tokens > 0 {
		h := w.o.Histogram
		in.FeatureRange, in.LargestFeatures = quantiles(slices.Clone(w.o.AbsMax)), largest(w.o)
		in.Clip = Clip{MinMax: h.MinMax(), Percentile: h.Percentile(calib.DefaultPercentile), MSE: h.MSE(127), Entropy: h.Entropy(128)}
		in.Stability.SettledAfter, in.Stability.Stable = w.s.Settled()
		in.Stability.Changes = append(in.Stability.Changes, w.s.Changes...)
	}
	importance := w.stats.Importance()
	if w.o.Tokens == 0 {
		importance = nil // all weights count the same
	}
	r.importance[name] = importance
	var linears []*quant.Linear
	for _, lin := range w.site.Linears {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		m, err := lin.Matrix()
		if err != nil {
			return err
		}
		o := calib.NewObserver(m.Cols)
		if err := o.Observe(m); err != nil {
			return fmt.Errorf("%s: %w", lin.ID(), err)
		}
		t := r.typeFor(m.Cols)
		linears = append(linears, &quant.Linear{Name: lin.Name, W: m, Grid: t.Grid})
		q := roundTrip(t, m, importance)
		r.p.Linears = append(r.p.Linears, Linear{
			Name: lin.ID(), Input: name, Type: t.Name, Out: m.Rows, In: m.Cols, Weights: distribution(o),
			WeightError: quant.WeightError(m, q), OutputError: quant.OutputError(m, q, w.stats.H),
			tensor: lin.Name, expert: lin.Expert, tokens: w.o.Tokens,
		})
	}
	var err error
	if in.Smoothing, err = r.smoothing(l, w, linears); err != nil {
		return err
	}
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

// outliers finds the outlier features, of inputs that share them together.
func (r *run) outliers() {
	for i := range r.p.Inputs {
		in := &r.p.Inputs[i]
		in.OutlierFeatures = append([]int{}, r.outlying.Features(in.Name)...)
	}
}
