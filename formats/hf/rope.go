package hf

import (
	"encoding/binary"
	"math"
)

// rope is the rotary embedding, as transformers' modeling_rope_utils.py understands config.json.
type rope struct {
	kind   string // default, linear, yarn or llama3
	dims   int    // elements of a head that are rotated
	theta  float64
	factor float64
	// original is the context before scaling (yarn, llama3).
	original int
	// Of yarn. magnitude is what the rotated elements are multiplied by beyond what YaRN's authors say; 1 unless the
	// configuration departs from them.
	betaFast, betaSlow, magnitude float64
	// Of llama3.
	lowFreq, highFreq float64
}

func (c *config) readRoPE(o *object) {
	r := &c.rope
	// transformers 5 gathers it all in rope_parameters.
	params := o.object("rope_parameters")
	scaling := params
	if params == nil {
		params, scaling = o, o.object("rope_scaling")
	}
	r.theta = params.float("rope_theta", o.float("rope_theta", 10000, 1, math.MaxFloat32), 1, math.MaxFloat32)
	partial := params.float("partial_rotary_factor", o.float("partial_rotary_factor", 1, 0, 1), 0, 1)
	r.dims = int(float64(c.headDim) * partial)
	if *o.err == nil && (r.dims < 2 || r.dims%2 != 0) {
		o.fail("head_dim", "is %d, of which %d elements are rotated; want an even number", c.headDim, r.dims)
	}
	r.kind = "default"
	if scaling == nil || *o.err != nil {
		return
	}
	r.kind = scaling.string("rope_type", scaling.string("type", "default"))
	if r.kind == "default" {
		return
	}
	if r.kind != "linear" && r.kind != "yarn" && r.kind != "llama3" {
		scaling.fail("rope_type", "is %.64q; supported: default, linear, yarn, llama3", r.kind)
		return
	}
	r.factor = scaling.float("factor", math.NaN(), 0, maxContext)
	switch r.kind {
	case "yarn":
		if !scaling.bool("truncate", true) {
			scaling.fail("truncate", "is false: GGUF readers round the bounds between the pairs that are stretched and those that are not")
		}
		r.original = scaling.int("original_max_position_embeddings", c.context, 1, maxContext)
		r.betaFast = scaling.float("beta_fast", 32, 0, maxWidth)
		r.betaSlow = scaling.float("beta_slow", 1, 0, maxWidth)
		r.magnitude = yarnMagnitude(scaling, r.factor)
	case "llama3":
		if !c.arch.ropeFreqs {
			scaling.fail("rope_type", "is %q, which GGUF readers do not know for %s", r.kind, c.class)
		}
		r.original = scaling.int("original_max_position_embeddings", -1, 1, maxContext)
		r.lowFreq = scaling.float("low_freq_factor", math.NaN(), 0, maxWidth)
		r.highFreq = scaling.float("high_freq_factor", math.NaN(), 0, maxWidth)
		if *o.err == nil && r.highFreq <= r.lowFreq {
			scaling.fail("high_freq_factor", "is %g, want more than low_freq_factor, %g", r.highFreq, r.lowFreq)
		}
	}
}

// yarnMagnitude is the configured attention factor over the one of the YaRN paper (arXiv:2309.00071, section 3.4),
// 0.1·ln(factor)+1, which GGUF readers apply by themselves.
func yarnMagnitude(o *object, factor float64) float64 {
	scale := func(mscale float64) float64 {
		if factor <= 1 {
			return 1
		}
		return 0.1*mscale*math.Log(factor) + 1
	}
	attention := scale(1)
	if o.has("mscale") && o.has("mscale_all_dim") {
		attention = scale(o.float("mscale", 1, 0, maxWidth)) / scale(o.float("mscale_all_dim", 1, 0, maxWidth))
	}
	return o.float("attention_factor", attention, 0, maxWidth) / scale(1)
}

func (r *rope) metadata(set func(key string, value any)) {
	set("rope.dimension_count", uint32(r.dims))
	set("rope.freq_base", float32(r.theta))
	switch r.kind {
	case "linear":
		set("rope.scaling.type", "linear")
		set("rope.scaling.factor", float32(r.factor))
	case "yarn":
		set("rope.scaling.type", "yarn")
		set("rope.scaling.factor", float32(r.factor))
		set("rope.scaling.original_context_length", uint32(r.original))
		set("rope.scaling.yarn_beta_fast", float32(r.betaFast))
		set("rope.scaling.yarn_beta_slow", float32(r.betaSlow))
		if r.magnitude != 1 {
			set("rope.scaling.attn_factor", float32(r.magnitude))
		}
	}
}

// freqFactors returns what the frequency of each pair is divided by, as the F32 tensor rope_freqs.weight: Llama 3.1
// stretches slow frequencies by factor, leaves fast ones, and goes over smoothly in between. nil without llama3.
func (r *rope) freqFactors() []byte {
	if r.kind != "llama3" {
		return nil
	}
	data := make([]byte, 0, 2*r.dims)
	for i := range r.dims / 2 {
		wavelength := 2 * math.Pi * math.Pow(r.theta, float64(2*i)/float64(r.dims))
		turns := float64(r.original) / wavelength // within the original context
		f := r.factor
		switch {
		case turns > r.highFreq:
			f = 1
		case turns >= r.lowFreq:
			smooth := (turns - r.lowFreq) / (r.highFreq - r.lowFreq)
			f = 1 / ((1-smooth)/r.factor + smooth)
		}
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(f)))
	}
	return data
}
