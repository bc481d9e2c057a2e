package pipeline

import (
	"math"
	"runtime/debug"
	"slices"

	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Transforms are tried on a sample: so many tokens, from the beginnings of sequences spread over the calibration set.
const (
	sampleTokens = 2048
	sampleSeqLen = 256
)

// transforms lists what is done to each group before it is quantized.
func (r *Recipe) transforms() []quant.Transform {
	var ts []quant.Transform
	if r.Smooth != nil {
		ts = append(ts, *r.Smooth)
	}
	return append(ts, r.Method.Needs().Transforms...)
}

// transformer scales the groups of layers before they are quantized, and keeps what it has done.
type transformer struct {
	*task
	foldings []quant.Folding
	ranges   []GroupRanges
	scales   map[string][]float32 // of the inputs, by the first linear of the group
	outputs  map[string][]float32 // what outputs have been divided by, by linear
}

// transform scales the groups of a layer whose weights are still the checkpoint's, by what the calibration inputs in s
// show. Afterwards l's weights and norms are those that quantization starts from. ol, the same layer of the original
// model or nil, gets them too: the function is the same, and both models' inputs can be compared channel by channel.
func (r *transformer) transform(s *stream, l, ol *model.Layer) error {
	return r.transformWith(r.plan.Recipe.transforms(), s, l, ol)
}

func (r *transformer) transformWith(transforms []quant.Transform, s *stream, l, ol *model.Layer) error {
	groups, err := r.quantGroups(l)
	if err != nil {
		return err
	}
	var stats []*quant.Stats
	method := r.plan.Recipe.Method
	own := method.Needs().Transforms
	if method.Needs().Trials {
		for _, g := range groups {
			stats = append(stats, quant.NewStats(g.Linears[0].W.Cols))
		}
	}
	if err := r.survey(s, l, groups, stats); err != nil {
		return err
	}
	ranges, folded := rangesBefore(groups), len(r.foldings)
	for i, g := range groups {
		for k, t := range transforms {
			f, err := t.Transform(r.ctx, g)
			if err != nil {
				return err
			}
			if stats != nil {
				if k >= len(transforms)-len(own) && f.Scale != nil {
					if err := r.settle(g, f, stats[i]); err != nil {
						return err
					}
				}
				stats[i] = divided(stats[i], f.Scale)
			}
			r.fold(g, f)
		}
		if stats != nil {
			stats[i] = nil
		}
	}
	r.transformed(groups, ranges, folded, l, ol)
	return nil
}

// worthScaling: a method that is tried takes scales that leave at most so much of the error. Smaller gains do not show in the model's
// divergence: scaling one group of gopher-4m, for 15% less of its error, moved that by 4%, the wrong way.
const worthScaling = 0.8

// settle chooses among none, half (in the exponents) and all of the scales that the method's transform has found to be best
// for rounding to nearest: the method may lose less without them, as GPTQ does, which makes up for its errors. in is of inputs that are not in g's sample.
func (r *transformer) settle(g *quant.Group, f *quant.Folding, in *quant.Stats) error {
	half := make([]float32, len(f.Scale))
	for j, s := range f.Scale {
		half[j] = float32(math.Sqrt(float64(s)))
	}
	found := *f
	f.Scale, f.Alpha, f.Beta = nil, 0, 0
	for i, scale := range [][]float32{nil, half, found.Scale} {
		e, err := trialOf(scale, in).error(r.ctx, g, r.plan.Recipe.Method)
		if err != nil {
			return err
		}
		if i == 0 {
			f.Before, f.After = e, e
		} else if e < f.After && e <= worthScaling*f.Before {
			share := float64(i) / 2
			f.Scale, f.After, f.Alpha, f.Beta = scale, e, share*found.Alpha, share*found.Beta
		}
	}
	if f.Scale == nil {
		f.Skipped = "no scales lower the method's error enough"
	}
	return nil
}

func rangesBefore(groups []*quant.Group) []GroupRanges {
	ranges := make([]GroupRanges, len(groups))
	for i, g := range groups {
		ranges[i].Group = g.Name
		ranges[i].InputBefore, ranges[i].WeightsBefore = spreads(g)
	}
	return ranges
}

// transformed ends the work on the groups of a layer, l, when all are scaled: one group's scales fold into the weights
// of another. folded is how many foldings there were before. ol, if there is one, gets the weights and vectors of l.
func (r *transformer) transformed(groups []*quant.Group, ranges []GroupRanges, folded int, l, ol *model.Layer) {
	for i, g := range groups {
		ranges[i].InputAfter, ranges[i].WeightsAfter = spreads(g)
		g.Sample = nil
	}
	r.ranges = append(r.ranges, ranges...)
	done := r.foldings[folded:]
	if !slices.ContainsFunc(done, func(f quant.Folding) bool { return f.Scale != nil }) {
		for _, lin := range l.Linears() {
			lin.F32 = nil // the checkpoint's weights still are the layer's: what follows is what it is without a transform
		}
		return
	}
	if ol == nil {
		return
	}
	for i, lin := range l.Linears() {
		ol.Linears()[i].F32 = lin.F32 // quantization replaces l's, and leaves the values alone
	}
	vectors := ol.Vectors()
	for name, v := range l.Vectors() {
		copy(vectors[name], v)
	}
}

// fold scales a group as a transform has found.
func (r *transformer) fold(g *quant.Group, f *quant.Folding) {
	if f.Scale != nil {
		g.Scale(f.Scale)
		r.noteOutputs(g, f.Scale)
		r.noteScale(g.Linears[0].Name, f.Scale)
	}
	r.foldings = append(r.foldings, *f)
}

// noteScale notes what the inputs of a group have been divided by, after what they were before.
func (r *transformer) noteScale(linear string, scale []float32) {
	if r.scales == nil {
		r.scales = map[string][]float32{}
	}
	s := r.scales[linear]
	if s == nil {
		r.scales[linear] = slices.Clone(scale)
		return
	}
	for j := range s {
		s[j] *= scale[j]
	}
}

// quantGroups returns the layer's sites as the transforms see them, with the weights of the linears decoded. Those of
// experts are left out: what they share their input with could not be scaled alike.
func (r *transformer) quantGroups(l *model.Layer) ([]*quant.Group, error) {
	linears := map[*model.Linear]*quant.Linear{}
	named := map[string]*model.Linear{}
	exact := map[*model.Linear]bool{} // on its type's grid, which no scaling may take it from
	var sites []*model.Site
	for _, site := range l.Sites() {
		if site.Expert >= 0 {
			continue
		}
		sites = append(sites, site)
		for _, lin := range site.Linears {
			w, err := lin.Matrix()
			if err != nil {
				return nil, err
			}
			lin.F32, named[lin.Name] = w, lin
			t := r.plan.Lookup(lin.Name)
			exact[lin] = t.Type.Grid != nil && (t.From == t.Type || exactly(t, w) != nil)
			linears[lin] = &quant.Linear{Name: lin.Name, W: w, Bias: lin.Bias, Product: lin.Product, Grid: t.Type.Grid}
		}
	}
	var groups []*quant.Group
	st := r.m.NewState()
	for _, site := range sites {
		g := &quant.Group{
			Name: site.ID(), In: quant.NewInputs(site.In()), Int8Inputs: r.plan.Recipe.Method.Needs().Int8Inputs,
		}
		keep := slices.ContainsFunc(site.Linears, func(lin *model.Linear) bool { return exact[lin] })
		if p := site.Prev; !keep && p != nil {
			if before := named[p.Name]; p.Row == nil || before != nil && !exact[before] {
				g.Prev, g.Before = p, linears[before]
			}
		}
		for _, lin := range site.Linears {
			g.Linears = append(g.Linears, linears[lin])
		}
		g.Block = l.Block(r.ctx, st, site, r.sample().seqLen)
		groups = append(groups, g)
	}
	return groups, nil
}

// sample says which part of the calibration set transforms are tried on: at most half of it for methods that fit
// weights to the other sequences.
func (r *transformer) sample() (s struct{ seqs, seqLen int }) {
	set := r.opt.Calib
	s.seqLen = min(set.SeqLen, sampleSeqLen)
	s.seqs = min((sampleTokens+s.seqLen-1)/s.seqLen, len(set.Sequences))
	if r.plan.Recipe.Method.Needs().Trials {
		s.seqs = min(s.seqs, max(1, len(set.Sequences)/2))
	}
	return s
}

// survey takes the calibration inputs through the layer once, for all groups, and leaves the hidden states as they are.
// stats, where not nil, get the inputs of each group from sequences that are not in the sample, if there are any.
func (r *transformer) survey(s *stream, l *model.Layer, groups []*quant.Group, stats []*quant.Stats) error {
	sample := r.sample()
	for _, g := range groups {
		g.Sample = tensor.New(sample.seqs*sample.seqLen, g.Linears[0].W.Cols)
	}
	chosen := make([]int, sample.seqs)
	for i := range chosen {
		chosen[i] = i * len(r.opt.Calib.Sequences) / sample.seqs
	}
	index := map[string]int{}
	for i, g := range groups {
		index[g.Name] = i
	}
	err := s.each(func(i int, x *tensor.Matrix) error {
		see := func(site *model.Site, in *tensor.Matrix, _ []int) error {
			index, ok := index[site.ID()]
			if !ok {
				return nil
			}
			g := groups[index]
			g.In.Observe(in)
			lo, hi := s.x.Sequences(i)
			from := lo // the first of the sequences before k that follow each other and are not in the sample
			fit := func(k int) {
				if stats != nil && stats[index] != nil && k > from {
					stats[index].Observe(in.View((from-lo)*s.seqLen, (k-lo)*s.seqLen, 0, in.Cols))
				}
			}
			for k := lo; k < hi; k++ {
				j := slices.Index(chosen, k)
				if j < 0 {
					continue
				}
				for t := range sample.seqLen {
					copy(g.Sample.Row(j*sample.seqLen+t), in.Row((k-lo)*s.seqLen+t))
				}
				if len(r.opt.Calib.Sequences) > 1 {
					fit(k)
					from = k + 1
				}
			}
			fit(hi)
			return nil
		}
		if err := s.enter(l, i, x, false); err != nil {
			return err
		}
		return l.Run(r.ctx, s.st, 0, len(l.Stages), see)
	})
	if err != nil {
		return err
	}
	if rests(r.m, r.m.Widest()) { // before scales are tried
		s.rest()
		gemm.Release()
		debug.FreeOSMemory()
	}
	for _, g := range groups {
		if err := checkInputs(g.Name, g.In.MeanSquare()); err != nil {
			return err
		}
	}
	return nil
}

// changesVectors says whether norms and biases change, so that they are written with their layer.
func (t *task) changesVectors() bool {
	recipe := &t.plan.Recipe
	return len(recipe.transforms()) > 0 || recipe.Method.Needs().Decides || recipe.BiasCorrection
}
