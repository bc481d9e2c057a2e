package pipeline

import (
	"context"
	"slices"

	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// Decision says how Auto quantizes a group, and why. The JSON names are part of the command line's interface.
type Decision struct {
	Group string `json:"group"`
	// InputMax is the largest magnitude in the group's input, InputMedian the median over its features of theirs: how
	// far outlier features stand out.
	InputMax    float64 `json:"input_absmax"`
	InputMedian float64 `json:"input_absmax_median"`
	// Candidates are GPTQ alone, then the other ways.
	Candidates []Candidate `json:"candidates"`
	Chosen     string      `json:"chosen"` // empty: none of the linears is quantized
}

// Candidate is a way to quantize a group, tried on some of its rows.
type Candidate struct {
	Method string `json:"method"`
	// Error is the relative squared error of the output of the block that follows, on calibration tokens that took no
	// part in choosing the weights.
	Error   float64 `json:"error"`
	Skipped string  `json:"skipped"` // why it was not tried; empty where it was
}

// findings are what runs with the method Auto find out, and keep when they start over.
type findings struct {
	decisions []Decision
	ways      map[string]way          // by group
	methods   map[string]quant.Method // by linear
	chosen    map[string]string       // by linear, the name of the way that its method is of
	plain     map[string]*plainRounding
	kl        map[string]float64 // by linear: the divergence that rounding it alone causes; nil before it is measured

	outputs *outputs // nil: none, or not yet

	validation *Validation
	runs       []ValidatedRun
	int8       int // linears that the limit has given Q8_0
}

// plainRounding is what rounding a linear of the original model to nearest does.
type plainRounding struct {
	importance []float32
	err        float64 // relative squared error of the output
}

func newFindings() *findings {
	return &findings{
		ways: map[string]way{}, methods: map[string]quant.Method{}, chosen: map[string]string{}, plain: map[string]*plainRounding{},
	}
}

// method is how a linear's weights are chosen: what the recipe's method has decided for it, else by that method itself.
func (f *findings) method(linear string, p *Plan) quant.Method {
	if m := f.methods[linear]; m != nil {
		return m
	}
	return p.Recipe.Method
}

// chooser tries ways to quantize the groups of a layer.
type chooser struct {
	*task
	scaled *transformer
	found  *findings
}

// choose decides how each group of a layer is quantized, or recalls it, and scales the groups for it, like transform.
func (c *chooser) choose(s *stream, l, ol *model.Layer) error {
	groups, err := c.scaled.quantGroups(l)
	if err != nil {
		return err
	}
	stats := make([]*quant.Stats, len(groups))
	for i, g := range groups {
		if _, known := c.found.ways[g.Name]; !known {
			stats[i] = quant.NewStats(g.Linears[0].W.Cols)
		}
	}
	if err := c.scaled.survey(s, l, groups, stats); err != nil {
		return err
	}
	ranges, folded := rangesBefore(groups), len(c.scaled.foldings)
	for i, g := range groups {
		var f *quant.Folding
		if stats[i] == nil {
			if t := c.found.ways[g.Name].transform; t != nil {
				f, err = t.Transform(c.ctx, g)
			}
		} else {
			c.noteRounding(g, stats[i])
			f, err = c.decide(g, stats[i])
		}
		if err != nil {
			return err
		}
		if f != nil {
			c.scaled.fold(g, f)
		}
		stats[i] = nil
	}
	c.scaled.transformed(groups, ranges, folded, l, ol)
	return nil
}

// noteRounding notes what rounding to nearest does to each linear as the checkpoint has it, for sensitivity.
func (c *chooser) noteRounding(g *quant.Group, in *quant.Stats) {
	if c.opt.Validate.MaxIncrease == 0 {
		return
	}
	importance := in.Importance()
	for _, l := range g.Linears {
		if l.Grid == nil {
			continue
		}
		_, decoded := encode(c.plan.Lookup(l.Name).Type, l.W, importance)
		c.found.plain[l.Name] = &plainRounding{importance, quant.OutputError(l.W, decoded, in.H)}
	}
}

// decide tries all ways on a group, by the Hessian of inputs that are not in its sample, and notes the one with the
// least error. It returns the folding of that way's transform, nil if it has none.
func (c *chooser) decide(g *quant.Group, in *quant.Stats) (*quant.Folding, error) {
	d := Decision{Group: g.Name, Candidates: []Candidate{}}
	ranges := g.In.MaxAbs()
	slices.Sort(ranges)
	d.InputMax, d.InputMedian = float64(ranges[len(ranges)-1]), float64(ranges[len(ranges)/2])
	var chosen way
	var folding *quant.Folding
	if slices.ContainsFunc(g.Linears, func(l *quant.Linear) bool { return l.Grid != nil }) {
		var t *trial // of one transform at a time: its Hessian and factor are large
		least := 0.0
		ways := c.plan.Recipe.ways()
		for _, w := range ways {
			if t == nil || t.transform != w.transform {
				var err error
				if t, err = c.newTrial(g, w.transform, in); err != nil {
					return nil, err
				}
			}
			try := Candidate{Method: w.name}
			if t.folding != nil && slices.ContainsFunc(ways, func(o way) bool { return o.transform == nil && o.method == w.method }) {
				try.Skipped = t.folding.Skipped // it would be what the method alone is
			}
			if try.Skipped == "" {
				var err error
				if try.Error, err = t.error(c.ctx, g, w.method); err != nil {
					return nil, err
				}
				if d.Chosen == "" || try.Error < least {
					least, d.Chosen, chosen, folding = try.Error, w.name, w, t.folding
				}
			}
			d.Candidates = append(d.Candidates, try)
		}
	}
	c.found.decisions = append(c.found.decisions, d)
	c.found.ways[g.Name] = chosen
	for _, l := range g.Linears {
		c.found.methods[l.Name], c.found.chosen[l.Name] = chosen.method, chosen.name
	}
	return folding, nil
}

// trial is a group with a transform's scales.
type trial struct {
	transform quant.Transform // nil: none
	folding   *quant.Folding  // nil without a transform
	scale     []float32       // nil: none
	in        *quant.Stats    // of inputs divided by them
}

func (c *chooser) newTrial(g *quant.Group, transform quant.Transform, in *quant.Stats) (*trial, error) {
	if transform == nil {
		return trialOf(nil, in), nil
	}
	f, err := transform.Transform(c.ctx, g)
	if err != nil {
		return nil, err
	}
	t := trialOf(f.Scale, in)
	t.transform, t.folding = transform, f
	return t, nil
}

// trialOf is a trial with some scales, or none.
func trialOf(scale []float32, in *quant.Stats) *trial {
	return &trial{scale: scale, in: divided(in, scale)}
}

// divided returns the tokens and the Hessian of inputs divided by scale; nil means by 1.
func divided(in *quant.Stats, scale []float32) *quant.Stats {
	if scale == nil {
		return in
	}
	d := &quant.Stats{Tokens: in.Tokens, H: in.H.Clone()}
	kernels.Parallel(d.H.Rows, 16, func(lo, hi int) {
		for i := lo; i < hi; i++ {
			row := d.H.Row(i)
			for j, s := range scale {
				row[j] /= scale[i] * s
			}
		}
	})
	return d
}

// error quantizes some rows of a group's linears and returns what that does to the output.
func (t *trial) error(ctx context.Context, g *quant.Group, m quant.Method) (float64, error) {
	solver := m.Open(t.in)
	return g.QuantizedError(t.scale, func(l *quant.Linear, rows *tensor.Matrix) (*quant.Weight, error) {
		res, err := solver.Quantize(ctx, quant.Job{W: rows, Grid: l.Grid, Product: l.Product})
		return res.Weight, err
	})
}
