package profile

import (
	"slices"

	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/smoothquant"
	"github.com/llmq/llmq/tensor"
)

// Smoothing is what package smoothquant makes of an input, if its linears are rounded to nearest: what
// `llmq quantize --smooth auto` would do.
type Smoothing struct {
	// Alpha is the α with the least error; nil if none lowers the error by more than SmoothingGain.
	Alpha *float64 `json:"alpha"`
	// Plain is the relative error of the output of what follows, without smoothing, and Best the least of any α.
	Plain float64 `json:"plain_error"`
	Best  float64 `json:"best_error"`
	// Skipped says why the input cannot be smoothed, or need not be; empty where it can.
	Skipped string `json:"skipped"`
}

// SmoothingGain is the least share of the error that smoothing must save to be recommended.
const SmoothingGain = 0.02

// What smoothing is tried on: so many tokens, from the beginnings of sequences spread over the calibration set.
const (
	sampleTokens = 2048
	sampleSeqLen = 256
)

// sample is the number of sequences and the tokens of each.
func (r *run) sample() (seqs, length int) {
	length = min(r.set.SeqLen, sampleSeqLen)
	return min((sampleTokens+length-1)/length, len(r.set.Sequences)), length
}

// smoothing searches α for a site, whose linears are given with their weights.
func (r *run) smoothing(l *model.Layer, w *watched, linears []*quant.Linear) (Smoothing, error) {
	if w.o.Tokens == 0 {
		return Smoothing{Skipped: "no token reaches it"}, nil
	}
	g := &quant.Group{Name: w.site.ID(), Linears: linears, In: w.in,
		Sample: w.sample.View(0, w.filled, 0, w.sample.Cols), Block: r.block(l, w.site)}
	if p := w.site.Prev; p != nil {
		g.Prev = &quant.Scaler{Name: p.Name, Norm: p.Norm, Row: p.Row}
		if p.Linear != nil {
			before, err := p.Linear.Matrix()
			if err != nil {
				return Smoothing{}, err
			}
			g.Prev.Linear = &quant.Linear{Name: p.Linear.Name, W: before}
		}
	}
	f, err := smoothquant.Smoothing{Auto: true}.Transform(r.ctx, g)
	if err != nil {
		return Smoothing{}, err
	}
	s := Smoothing{Plain: f.Before, Best: f.After, Skipped: f.Skipped}
	if f.Scale != nil && f.After < f.Before*(1-SmoothingGain) {
		s.Alpha = &f.Alpha
	}
	return s, nil
}

// block returns what computes, from the input of a site, all that is added to the residual stream until the next stage
// that begins; nil where the errors of the site's own outputs are those that count.
func (r *run) block(l *model.Layer, site *model.Site) func(x *tensor.Matrix, weights []*tensor.Matrix) *tensor.Matrix {
	k := slices.IndexFunc(l.Stages, func(s model.Stage) bool { return s.Sites[0] == site })
	if k < 0 || !l.Stages[k].Begins || len(l.Stages[k].Sites) > 1 {
		return nil
	}
	end := k + 1
	reads := l.Stages[k].ReadsAux
	for end < len(l.Stages) && !l.Stages[end].Begins {
		reads = reads || l.Stages[end].ReadsAux
		end++
	}
	if reads { // what the input alone does not give
		return nil
	}
	_, length := r.sample()
	return func(x *tensor.Matrix, weights []*tensor.Matrix) *tensor.Matrix {
		for i, lin := range site.Linears {
			own := lin.F32
			lin.F32 = weights[i]
			defer func() { lin.F32 = own }()
		}
		r.st.Enter(r.m, tensor.New(x.Rows, r.m.Width), length)
		r.st.In = x
		l.Stages[k].Apply(r.st)
		if err := l.Run(r.ctx, r.st, k+1, end, nil); err != nil {
			return tensor.New(x.Rows, r.m.Dim) // the run has been cancelled, and ends
		}
		return r.st.X
	}
}
