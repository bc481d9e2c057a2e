package model

import (
	"fmt"
	"math"
	"sync"

	"github.com/llmq/llmq/kernels/elementwise"
	"github.com/llmq/llmq/tensor"
)

// RoPE describes the rotary position embedding (Su et al., arXiv:2104.09864) and how it was stretched to longer
// contexts.
type RoPE struct {
	Dims    int     // rope.dimension_count: how many elements of a head are rotated, from its first
	Base    float64 // rope.freq_base
	Scaling string  // rope.scaling.type: "none", "linear" or "yarn"
	Factor  float64 // rope.scaling.factor: how many times longer the context became
	// YaRN (Peng et al., arXiv:2309.00071).
	OrigContext        int     // rope.scaling.original_context_length
	AttnFactor         float64 // rope.scaling.attn_factor: a further factor on the rotated elements
	BetaFast, BetaSlow float64 // turns within OrigContext above which a pair is kept, and below which it is stretched
	Style              elementwise.RoPEStyle
	// Factors divide the frequencies of the pairs (rope_freqs.weight, Llama 3.1); nil: all are 1.
	Factors []float32
	// Long, where not nil, takes the place of this one in sequences of more than OrigContext tokens (LongRoPE, Ding et al.,
	// arXiv:2402.13753).
	Long *RoPE

	mu       sync.Mutex
	cos, sin *tensor.Matrix // by position, as many as were needed so far
}

// Defaults of llama.cpp for keys that are not there; those of YaRN are the paper's.
const (
	defaultRopeBase = 10000
	yarnBetaFast    = 32
	yarnBetaSlow    = 1
)

// RoPE reads the rotary embedding of heads of headDim features, for a model that was trained on context tokens.
func (k *Keys) RoPE(style elementwise.RoPEStyle, headDim, context int) *RoPE {
	r := &RoPE{Style: style}
	r.Dims = k.Int("rope.dimension_count", headDim, 2, MaxWidth)
	if k.err == nil && (r.Dims%2 != 0 || r.Dims > headDim) {
		k.Fail("rope.dimension_count", "is %d, want an even number up to the head's %d", r.Dims, headDim)
	}
	r.Base = k.Float("rope.freq_base", defaultRopeBase, 1, math.MaxFloat32)
	r.Scaling = k.String("rope.scaling.type", "linear")
	// rope.scale_linear is the name that old files use.
	r.Factor = k.Float("rope.scaling.factor", k.Float("rope.scale_linear", 1, -1, MaxContext), -1, MaxContext)
	if r.Factor < 0 {
		k.Fail("rope.scaling.factor", "is %g, want a positive number", r.Factor)
	}
	if r.Factor == 0 { // llama.cpp takes 0 for "not set"
		r.Factor = 1
	}
	r.OrigContext = k.Int("rope.scaling.original_context_length", context, 1, MaxContext)
	r.AttnFactor = k.Float("rope.scaling.attn_factor", 1, 0, MaxWidth)
	r.BetaFast = k.Float("rope.scaling.yarn_beta_fast", yarnBetaFast, 0, MaxWidth)
	r.BetaSlow = k.Float("rope.scaling.yarn_beta_slow", yarnBetaSlow, 0, MaxWidth)
	switch r.Scaling {
	case "none":
		r.Factor = 1
	case "linear", "yarn", "longrope": // what longrope stretches is in Factors
	default:
		k.Fail("rope.scaling.type", "is %.64q, supported are none, linear, yarn, longrope", r.Scaling)
	}
	return r
}

// Unscaled returns the rotary embedding with another base and no scaling: that of layers with a window, which never see
// far.
func (r *RoPE) Unscaled(base float64) *RoPE {
	return &RoPE{Dims: r.Dims, Base: base, Scaling: "none", Factor: 1, OrigContext: r.OrigContext, AttnFactor: 1,
		BetaFast: r.BetaFast, BetaSlow: r.BetaSlow, Style: r.Style}
}

// WithBase returns the rotary embedding with another base.
func (r *RoPE) WithBase(base float64) *RoPE {
	return &RoPE{Dims: r.Dims, Base: base, Scaling: r.Scaling, Factor: r.Factor, OrigContext: r.OrigContext, AttnFactor: r.AttnFactor,
		BetaFast: r.BetaFast, BetaSlow: r.BetaSlow, Style: r.Style}
}

// For is the rotary embedding for sequences of n tokens; nil: none.
func (r *RoPE) For(n int) *RoPE {
	if r != nil && r.Long != nil && n > r.OrigContext {
		return r.Long
	}
	return r
}

// SetFactors has the frequencies divided by factors, a tensor's values; nil: they are not.
func (b *Loader) SetFactors(r *RoPE, name string, p Presence) {
	factors := b.Vector(name, r.Dims/2, p)
	for i, f := range factors {
		if f <= 0 && b.err == nil {
			b.err = fmt.Errorf("model: %s: tensor %q: element %d is %v, want a positive factor", b.m.Source.Name(), b.prefix+name, i, f)
		}
	}
	if factors != nil {
		r.Factors = factors
	}
}

// frequencies returns the angle per position of each of the Dims/2 pairs, and the factor on the rotated elements.
func (r *RoPE) frequencies() (freq []float64, magnitude float64) {
	n := r.Dims / 2
	freq = make([]float64, n)
	// The pair that turns rot times within the original context.
	pair := func(rot float64) float64 {
		return float64(r.Dims) * math.Log(float64(r.OrigContext)/(rot*2*math.Pi)) / (2 * math.Log(r.Base))
	}
	lo := max(0, math.Floor(pair(r.BetaFast)))
	hi := min(float64(r.Dims-1), math.Ceil(pair(r.BetaSlow)))
	for j := range freq {
		f := math.Pow(r.Base, -2*float64(j)/float64(r.Dims))
		if r.Factors != nil {
			f /= float64(r.Factors[j])
		}
		keep := 0.0 // the share of the unstretched frequency
		if r.Scaling == "yarn" {
			keep = 1 - min(1, max(0, (float64(j)-lo)/max(0.001, hi-lo)))
		}
		freq[j] = f * (keep + (1-keep)/r.Factor)
	}
	magnitude = r.AttnFactor
	if r.Scaling == "yarn" && r.Factor > 1 {
		magnitude *= 1 + 0.1*math.Log(r.Factor)
	}
	return freq, magnitude
}

// Table returns cosines and sines for positions 0 to n-1 at least, positions×pairs, times the magnitude. Angles are
// computed in float64: at position 100000 a float32 angle is off by up to 0.004. It may be called from several goroutines.
func (r *RoPE) Table(n int) (cos, sin *tensor.Matrix) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cos != nil && r.cos.Rows >= n {
		return r.cos, r.sin
	}
	freq, magnitude := r.frequencies()
	cos, sin = tensor.New(n, len(freq)), tensor.New(n, len(freq))
	for p := range n {
		c, s := cos.Row(p), sin.Row(p)
		for j, f := range freq {
			sn, cs := math.Sincos(float64(p) * f)
			c[j], s[j] = float32(cs*magnitude), float32(sn*magnitude)
		}
	}
	r.cos, r.sin = cos, sin
	return cos, sin
}

// rotate turns the heads of x, tokens×(heads·headDim), in place; the first token is at position at.
func (r *RoPE) rotate(x *tensor.Matrix, headDim, at int) {
	cos, sin := r.Table(at + x.Rows)
	elementwise.RoPE(x, headDim, cos.View(at, at+x.Rows, 0, cos.Cols), sin.View(at, at+x.Rows, 0, sin.Cols), r.Style)
}
