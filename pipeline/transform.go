package pipeline

import (
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/awq"
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
	if r.Method.awq() {
		ts = append(ts, awq.Scaling{})
	}
	return ts
}

// transform scales the groups of a layer whose weights are still the checkpoint's, by what the calibration inputs in s
// show. Afterwards l's weights and norms are those that quantization starts from. ol, the same layer of the original
// model or nil, gets them too: the function is the same, and both models' inputs can be compared channel by channel.
func (r *run) transform(s *stream, l, ol *model.Layer) error {
	return r.transformWith(r.plan.Recipe.transforms(), s, l, ol)
}

func (r *run) transformWith(transforms []quant.Transform, s *stream, l, ol *model.Layer) error {
	groups, err := r.quantGroups(l)
	if err != nil {
		return err
	}
	var stats []*quant.Stats
	if r.plan.Recipe.Method == AWQGPTQ {
		for _, g := range groups {
			stats = append(stats, quant.NewStats(g.Linears[0].W.Cols))
		}
	}
	if err := r.survey(s, l, groups, stats); err != nil {
		return err
	}
	ranges, folded := rangesBefore(groups), len(r.foldings)
	for i, g := range groups {
		for _, t := range transforms {
			f, err := t.Transform(r.ctx, g)
			if err != nil {
				return err
			}
			if stats != nil {
				if _, ok := t.(awq.Scaling); ok && f.Scale != nil {
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

// worthScaling: GPTQ takes scales that leave at most so much of the error. Smaller gains do not show in the model's
// divergence: scaling one group of gopher-4m, for 15% less of its error, moved that by 4%, the wrong way.
const worthScaling = 0.8

// settle chooses among none, half (in the exponents) and all of the scales that AWQ has found to be best for rounding to
// nearest: GPTQ makes up for its errors, and may lose less without them. in is of inputs that are not in g's sample.
func (r *run) settle(g *quant.Group, f *quant.Folding, in *quant.Stats) error {
	half := make([]float32, len(f.Scale))
	for j, s := range f.Scale {
		half[j] = float32(math.Sqrt(float64(s)))
	}
	found := *f
	f.Scale, f.Alpha, f.Beta = nil, 0, 0
	for i, scale := range [][]float32{nil, half, found.Scale} {
		e, err := r.trialOf(scale, in).error(r.ctx, g, GPTQ, r.opt.GPTQ)
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
		f.Skipped = "no scales lower its error with gptq enough"
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
func (r *run) transformed(groups []*quant.Group, ranges []GroupRanges, folded int, l, ol *model.Layer) {
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
func (r *run) fold(g *quant.Group, f *quant.Folding) {
	if f.Scale != nil {
		g.Scale(f.Scale)
		r.noteScale(g.Linears[0].Name, f.Scale)
	}
	r.foldings = append(r.foldings, *f)
}

// noteScale notes what the inputs of a group have been divided by, after what they were before.
func (r *run) noteScale(linear string, scale []float32) {
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

// quantGroups returns the layer's groups as the transforms see them, with the weights of the linears decoded.
func (r *run) quantGroups(l *model.Layer) ([]*quant.Group, error) {
	linears := map[*model.Linear]*quant.Linear{}
	for _, lin := range l.Linears() {
		w, err := lin.Matrix()
		if err != nil {
			return nil, err
		}
		lin.F32 = w
		linears[lin] = &quant.Linear{Name: lin.Name, W: w, Bias: lin.Bias, Grid: r.plan.Lookup(lin.Name).Type.Grid}
	}
	var groups []*quant.Group
	for _, mg := range l.Groups() {
		g := &quant.Group{
			Name: strings.TrimSuffix(l.Q.Name, "attn_q.weight") + mg.Name,
			Prev: &quant.Scaler{Name: mg.Prev.Name, Norm: mg.Prev.Norm, Row: mg.Prev.Row},
			In:   quant.NewInputs(mg.Linears[0].In), Int8Inputs: r.plan.Recipe.Method == Int8,
		}
		if mg.Prev.Linear != nil {
			g.Prev.Linear = linears[mg.Prev.Linear]
		}
		for _, lin := range mg.Linears {
			g.Linears = append(g.Linears, linears[lin])
		}
		if !mg.Residual {
			g.Block = block(l, mg, r.sample().seqLen)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

// block returns what computes the output of attention or of the MLP from the input of the group that opens it.
func block(l *model.Layer, mg model.Group, seqLen int) func(x *tensor.Matrix, weights []*tensor.Matrix) *tensor.Matrix {
	last := l.Down
	core := l.MLPCore
	if mg.Name == "attn_in" {
		last = l.O
		core = func(dst, in *tensor.Matrix) { l.AttnCore(dst, in, seqLen) }
	}
	return func(x *tensor.Matrix, weights []*tensor.Matrix) *tensor.Matrix {
		for i, lin := range mg.Linears {
			own := lin.F32
			lin.F32 = weights[i]
			defer func() { lin.F32 = own }()
		}
		h, y := tensor.New(x.Rows, last.In), tensor.New(x.Rows, last.Out)
		core(h, x)
		gemm.MatMulF32(y, h, last.F32)
		return y
	}
}

// sample says which part of the calibration set transforms are tried on: at most half of it for methods that fit
// weights to the other sequences.
func (r *run) sample() (s struct{ seqs, seqLen int }) {
	set := r.opt.Calib
	s.seqLen = min(set.SeqLen, sampleSeqLen)
	s.seqs = min((sampleTokens+s.seqLen-1)/s.seqLen, len(set.Sequences))
	if m := r.plan.Recipe.Method; m == Auto || m == AWQGPTQ {
		s.seqs = min(s.seqs, max(1, len(set.Sequences)/2))
	}
	return s
}

// survey takes the calibration inputs through the layer once, for all groups, and leaves the hidden states as they are.
// stats, where not nil, get the inputs of each group from sequences that are not in the sample, if there are any.
func (r *run) survey(s *stream, l *model.Layer, groups []*quant.Group, stats []*quant.Stats) error {
	sample := r.sample()
	for _, g := range groups {
		g.Sample = tensor.New(sample.seqs*sample.seqLen, g.Linears[0].W.Cols)
	}
	chosen := make([]int, sample.seqs)
	for i := range chosen {
		chosen[i] = i * len(r.opt.Calib.Sequences) / sample.seqs
	}
	m := s.m
	err := s.each(func(i int, x *tensor.Matrix) error {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		see := func(index int, in *tensor.Matrix) {
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
		}
		h := scratch(&s.h, x.Rows, m.Dim)
		l.AttnIn(h, x)
		see(0, h)
		a := tensor.New(x.Rows, m.Heads*m.HeadDim)
		l.AttnCore(a, h, s.seqLen)
		see(1, a)
		x = x.Clone()
		l.AttnOut(x, a)
		l.MLPIn(h, x)
		see(2, h)
		f := scratch(&s.f, x.Rows, m.FFN)
		l.MLPCore(f, h)
		see(3, f)
		return nil
	})
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := checkInputs(g.Name, g.In.MeanSquare()); err != nil {
			return err
		}
	}
	return nil
}

// changesVectors says whether norms and biases change, so that they are written with their layer.
func (r *run) changesVectors() bool {
	recipe := &r.plan.Recipe
	return len(recipe.transforms()) > 0 || recipe.Method == Auto || recipe.BiasCorrection
}

// writeVectors writes the norms and biases of a layer after transforms and bias correction.
func (r *run) writeVectors(l *model.Layer) error {
	vectors := l.Vectors()
	for i := range r.plan.Tensors {
		t := &r.plan.Tensors[i]
		v, ok := vectors[t.Name]
		if !ok {
			continue
		}
		w := tensor.FromSlice(1, len(v), v)
		if err := r.check(t, w); err != nil {
			return err
		}
		data, decoded := encode(t.Type, w, nil)
		if err := r.out.WriteTensor(t.Name, data); err != nil {
			return err
		}
		r.done(t, quant.WeightError(w, decoded), 0)
	}
	return nil
}

// clips says whether AWQ may clip a linear's weights: queries and keys meet in a product that clipping disturbs (the
// authors leave them out).
func clips(name string) bool {
	return !strings.HasSuffix(name, ".attn_q.weight") && !strings.HasSuffix(name, ".attn_k.weight")
}
