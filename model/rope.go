package model

import (
	"math"

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
}

// Defaults of llama.cpp for keys that are not there; those of YaRN are the paper's.
const (
	defaultRopeBase = 10000
	yarnBetaFast    = 32
	yarnBetaSlow    = 1
)

func readRoPE(k *keys, c *Config) RoPE {
	r := RoPE{Style: architectures[c.Arch].rope}
	r.Dims = k.int("rope.dimension_count", c.HeadDim, 2, maxWidth)
	if k.err == nil && (r.Dims%2 != 0 || r.Dims > c.HeadDim) {
		k.fail("rope.dimension_count", "is %d, want an even number up to the head's %d", r.Dims, c.HeadDim)
	}
	r.Base = k.float("rope.freq_base", defaultRopeBase, 1, math.MaxFloat32)
	r.Scaling = k.string("rope.scaling.type", "linear")
	// rope.scale_linear is the name that old files use.
	r.Factor = k.float("rope.scaling.factor", k.float("rope.scale_linear", 1, -1, maxContext), -1, maxContext)
	if r.Factor < 0 {
		k.fail("rope.scaling.factor", "is %g, want a positive number", r.Factor)
	}
	if r.Factor == 0 { // llama.cpp takes 0 for "not set"
		r.Factor = 1
	}
	r.OrigContext = k.int("rope.scaling.original_context_length", c.Context, 1, maxContext)
	r.AttnFactor = k.float("rope.scaling.attn_factor", 1, 0, maxWidth)
	r.BetaFast = k.float("rope.scaling.yarn_beta_fast", yarnBetaFast, 0, maxWidth)
	r.BetaSlow = k.float("rope.scaling.yarn_beta_slow", yarnBetaSlow, 0, maxWidth)
	switch r.Scaling {
	case "none":
		r.Factor = 1
	case "linear", "yarn":
	default:
		k.fail("rope.scaling.type", "is %.64q, supported are none, linear, yarn", r.Scaling)
	}
	return r
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

// table returns cosines and sines for positions 0 to n-1, positions×pairs, times the magnitude. Angles are computed in
// float64: at position 100000 a float32 angle is off by up to 0.004.
func (r *RoPE) table(n int) (cos, sin *tensor.Matrix) {
	freq, magnitude := r.frequencies()
	cos, sin = tensor.New(n, len(freq)), tensor.New(n, len(freq))
	for p := range n {
		c, s := cos.Row(p), sin.Row(p)
		for j, f := range freq {
			sn, cs := math.Sincos(float64(p) * f)
			c[j], s[j] = float32(cs*magnitude), float32(sn*magnitude)
		}
	}
	return cos, sin
}
