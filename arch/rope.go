package arch

import (
	"math"

	"github.com/llmq/llmq/formats/hf/object"
)

// rope is the rotary embedding, as transformers' modeling_rope_utils.py understands config.json.
type rope struct {
	kind   string // default, linear, yarn, llama3 or longrope
	dims   int    // elements of a head that are rotated
	theta  float64
	factor float64
	// original is the context before scaling (yarn, llama3, longrope).
	original int
	// Of yarn. magnitude is what the rotated elements are multiplied by beyond what YaRN's authors say; 1 unless the
	// configuration departs from them.
	betaFast, betaSlow, magnitude float64
	// Of llama3.
	lowFreq, highFreq float64

	local   float64        // the base of layers with a window; 0: they have none of their own
	params  *object.Object // what has the base
	scaling *object.Object // nil: none
}

// ropeOptions say what a class and its GGUF readers can do.
type ropeOptions struct {
	// LayerType is the key in rope_parameters of what is wanted where layer types have parameters of their own:
	// "full_attention", unless the class is the other way.
	LayerType string
	// Local: layers with a window may have parameters of their own: see localTheta.
	Local bool
	// ThetaKey is the key of the base in old configurations, "rope_theta" if it is empty.
	ThetaKey string
	// Factors: readers take rope_freqs.weight, for llama3.
	Factors bool
	// Long: readers take longrope's factors.
	Long bool
	// Partial: the class reads partial_rotary_factor; PartialDefault where config.json is silent, 0 meaning 1.
	Partial        bool
	PartialDefault float64
	// Betas: readers take YaRN's beta_fast and beta_slow.
	Betas bool
	// Untruncated: YaRN's bounds are not rounded, which readers do all the same.
	Untruncated bool
}

// readRoPE reads the rotary embedding.
func (c *Conversion) readRoPE(r *Config, opt ropeOptions) *rope {
	o := c.Config
	e := &rope{kind: "default"}
	if opt.ThetaKey == "" {
		opt.ThetaKey = "rope_theta"
	}
	params := c.ropeParameters(opt)
	e.theta = params.Float("rope_theta", o.Float(opt.ThetaKey, r.Theta, 1, math.MaxFloat32), 1, math.MaxFloat32)
	e.params = params
	partial := 1.0
	if opt.PartialDefault != 0 {
		partial = opt.PartialDefault
	}
	if opt.Partial {
		partial = params.Float("partial_rotary_factor", o.Float("partial_rotary_factor", partial, 0, 1), 0, 1)
	} else if f := params.Float("partial_rotary_factor", o.Float("partial_rotary_factor", 1, 0, 1), 0, 1); f != 1 && o.Err() == nil {
		o.Fail("partial_rotary_factor", "is %g, which GGUF readers do not know for %s", f, c.Class)
	}
	e.dims = int(float64(r.HeadDim) * partial)
	if o.Err() == nil && (e.dims < 2 || e.dims%2 != 0) {
		o.Fail("head_dim", "is %d, of which %d elements are rotated; want an even number", r.HeadDim, e.dims)
	}
	if params == nil || o.Err() != nil {
		return e
	}
	scaling := params
	e.scaling = scaling
	e.kind = scaling.String("rope_type", scaling.String("type", "default"))
	switch e.kind {
	case "default", "mrope": // M-RoPE is plain RoPE where all tokens are text
		e.kind = "default"
	case "dynamic":
		e.kind = "default"
		c.Warn("%s: rope_scaling: dynamic scaling begins beyond max_position_embeddings, %d; GGUF readers do without it", o.File, r.Context)
		scaling.Float("factor", 1, 0, maxContext)
	case "linear":
		e.factor = scaling.Float("factor", math.NaN(), 0, maxContext)
	case "yarn":
		c.readYaRN(e, r, opt)
	case "llama3":
		if !opt.Factors {
			scaling.Fail("rope_type", "is %q, which GGUF readers do not know for %s", e.kind, c.Class)
		}
		e.factor = scaling.Float("factor", math.NaN(), 0, maxContext)
		e.original = c.original(e, r.Context)
		e.lowFreq = scaling.Float("low_freq_factor", math.NaN(), 0, maxWidth)
		e.highFreq = scaling.Float("high_freq_factor", math.NaN(), 0, maxWidth)
		if o.Err() == nil && e.highFreq < e.lowFreq { // they are the same in Llama 4
			scaling.Fail("high_freq_factor", "is %g, want at least low_freq_factor, %g", e.highFreq, e.lowFreq)
		}
	case "longrope", "su":
		if e.kind = "longrope"; opt.Long {
			break
		}
		fallthrough
	default:
		scaling.Fail("rope_type", "is %.64q; supported for %s: default, linear, yarn, llama3", e.kind, c.Class)
	}
	return e
}

// ropeParameters are the parameters of the rotary embedding of all layers, or of those that opt.LayerType names: those of
// rope_scaling, or where that is empty of rope_parameters, in which transformers 5 gathers them. nil: there are none.
func (c *Conversion) ropeParameters(opt ropeOptions) *object.Object {
	o := c.Config
	old, params := o.Object("rope_scaling"), o.Object("rope_parameters")
	full, sliding := params.Object("full_attention"), params.Object("sliding_attention")
	switch byType := full != nil || sliding != nil; {
	case len(old.Keys()) > 0 && byType:
		c.Refuse("rope_scaling", "there are rope_parameters of layer types beside it")
	case len(old.Keys()) > 0:
		return old
	case !byType:
		return params
	case opt.LayerType == "sliding_attention" && sliding != nil:
		return sliding
	case opt.Local || sliding == nil:
		return full
	case full == nil:
		return sliding
	case !sliding.Equal(full):
		params.Fail("sliding_attention", "is not what full_attention is, and GGUF readers know one rotary embedding for %s", c.Class)
	default:
		sliding.ReadAll()
	}
	return full
}

// original reads the context before scaling, which transformers 5 has at the top too, and prefers there.
func (c *Conversion) original(e *rope, absent int) int {
	const key = "original_max_position_embeddings"
	inner := e.scaling.Int(key, absent, 1, maxContext)
	return c.Config.Int(key, inner, 1, maxContext)
}

func (c *Conversion) readYaRN(e *rope, r *Config, opt ropeOptions) {
	s := e.scaling
	const rounded = "GGUF readers round the bounds between the pairs that are stretched and those that are not"
	switch {
	case s.Bool("truncate", true):
	case opt.Untruncated:
		c.Warn("%s: truncate is false: %s", c.Config.File, rounded)
	default:
		s.Fail("truncate", "is false: %s", rounded)
	}
	e.original = c.original(e, r.Context)
	e.factor = s.Float("factor", float64(r.Context)/float64(max(e.original, 1)), 0, maxContext)
	e.betaFast = s.Float("beta_fast", 32, 0, maxWidth)
	e.betaSlow = s.Float("beta_slow", 1, 0, maxWidth)
	if (e.betaFast != 32 || e.betaSlow != 1) && !opt.Betas && c.Config.Err() == nil {
		c.Warn("%s: beta_fast and beta_slow are %g and %g: GGUF readers take 32 and 1 for %s", c.Config.File, e.betaFast, e.betaSlow, c.Class)
	}
	e.magnitude = yarnMagnitude(s, e.factor)
}

// yarnMagnitude is the configured attention factor over the one of the YaRN paper (arXiv:2309.00071, section 3.4),
// 0.1·ln(factor)+1, which GGUF readers apply by themselves.
func yarnMagnitude(o *object.Object, factor float64) float64 {
	scale := func(mscale float64) float64 {
		if factor <= 1 {
			return 1
		}
		return 0.1*mscale*math.Log(factor) + 1
	}
	attention := scale(1)
	if o.Has("mscale") && o.Has("mscale_all_dim") {
		attention = scale(o.Float("mscale", 1, 0, maxWidth)) / scale(o.Float("mscale_all_dim", 1, 0, maxWidth))
	}
	return o.Float("attention_factor", attention, 0, maxWidth) / scale(1)
}

// ropeFactors declares rope_freqs.weight, by which the frequency of each pair is divided: Llama 3.1 stretches slow
// frequencies by factor, leaves fast ones, and goes over smoothly in between. Nothing without llama3.
func (c *Conversion) ropeFactors(e *rope) {
	if e.kind != "llama3" || c.Config.Err() != nil {
		return
	}
	factors := make([]float32, e.dims/2)
	// In float32, step by step, as the converter computes it: its library divides a number by a tensor by multiplying with
	// the reciprocal.
	low, high, factor := float32(e.lowFreq), float32(e.highFreq), float32(e.factor)
	for i := range factors {
		freq := 1 / float32(math.Pow(e.theta, float64(float32(2*i)/float32(e.dims))))
		wavelength := 1 / freq * float32(2*math.Pi)
		switch {
		case wavelength < float32(float64(e.original)/e.highFreq):
			factors[i] = 1
		case wavelength > float32(float64(e.original)/e.lowFreq) || high == low:
			factors[i] = factor
		default:
			smooth := (1/wavelength*float32(e.original) - low) / (high - low)
			factors[i] = 1 / ((1-smooth)/factor + smooth)
		}
	}
	c.Values("rope_freqs.weight", factors)
}
