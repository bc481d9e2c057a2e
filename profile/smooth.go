package profile

import (
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/smoothquant"
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
	_, length := r.sample()
	g := &quant.Group{Name: w.site.ID(), Prev: w.site.Prev, Linears: linears, In: w.in,
		Sample: w.sample.View(0, w.filled, 0, w.sample.Cols), Block: l.Block(r.ctx, r.st, w.site, length)}
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
