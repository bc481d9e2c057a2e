package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/llmq/llmq/calib"
)

// Fallback is a linear that should have more bits.
type Fallback struct {
	Linear string `json:"linear"`
	Reason string `json:"reason"`
}

// Check is a question of the suitability checklist, answered by what was measured.
type Check struct {
	Question string `json:"question"`
	OK       bool   `json:"ok"`
	Evidence string `json:"evidence"`
	Advice   string `json:"advice"` // "" if OK
}

const (
	// FallbackFactor is how many times the median a linear's output error or KL divergence must be to list it.
	FallbackFactor = 3
	// HeavyTails is the kurtosis above which weights are worth a remark: Laplace's distribution has 6.
	HeavyTails = 6
	// ClipShare: where the range with the least squared error is less than this share of the whole range, a few values
	// far out take the levels of all others.
	ClipShare = 0.5
)

// advise draws the conclusions.
func (p *Profile) advise(opt Options) {
	p.fallback(opt.FallbackError)
	p.check("Is there enough calibration text, from several sources?", p.textEvidence, "give more text, of more kinds")
	if slices.ContainsFunc(p.Linears, func(l Linear) bool { return l.expert >= 0 }) {
		p.check("Does the calibration text reach every expert?", p.expertEvidence, "give more text, of more kinds: experts "+
			"that no token reaches are rounded blindly")
	}
	p.check("Did the ranges of the activations settle?", p.stabilityEvidence,
		"calibrate on more sequences; for static eight-bit activations let these inputs fall back to dynamic scales")
	p.check("Are the activations free of systematic outlier features?", p.outlierEvidence,
		"smooth these inputs before rounding activations, or keep the features in 16 bits (LLM.int8)")
	p.check("Does one eight-bit range fit all values of each input?", p.clipEvidence,
		"clip these inputs by MSE or entropy, or scale activations per token")
	p.check("Are the weights free of heavy tails?", p.weightEvidence, "choose a type with small groups, or search the clipping of the weights")
	p.check(fmt.Sprintf("Do blocks of %s divide every linear's columns?", p.Type), p.blockEvidence,
		"these linears get another type; see their \"type\"")
	p.check("Do all linears lose about as much to rounding?", p.errorEvidence, "give the linears under \"fallback\" more bits")
	if slices.ContainsFunc(p.Linears, func(l Linear) bool { return l.KL != nil }) {
		p.check("Does no single linear disturb the predictions most?", p.klEvidence, "give these linears more bits")
	}
	p.check("Are the inputs fine without smoothing?", p.smoothingEvidence, "smooth these inputs with the α under \"smoothing\"")
}

func (p *Profile) check(question string, evidence func() (bool, string), advice string) {
	ok, text := evidence()
	if ok {
		advice = ""
	}
	p.Checklist = append(p.Checklist, Check{question, ok, text, advice})
}

// median of values; 0 if there are none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// errors of all linears whose inputs were seen, and divergences of all tensors for which they are known.
func (p *Profile) errors() (errors, kl []float64) {
	for i := range p.Linears {
		l := &p.Linears[i]
		if l.tokens > 0 {
			errors = append(errors, l.OutputError)
		}
		if l.KL != nil && l.expert <= 0 {
			kl = append(kl, l.KL.Mean)
		}
	}
	return errors, kl
}

func (p *Profile) fallback(limit float64) {
	const fewest = 4 // for a median to mean something
	errors, kl := p.errors()
	why := fmt.Sprintf("the limit of %.3g", limit)
	if limit == 0 {
		m := median(errors)
		limit = FallbackFactor * m
		why = fmt.Sprintf("%d × the median of %.3g", FallbackFactor, m)
	}
	klMedian := median(kl)
	for i := range p.Linears {
		l := &p.Linears[i]
		var reasons []string
		if l.OutputError > limit {
			reasons = append(reasons, fmt.Sprintf("relative output error %.3g exceeds %s", l.OutputError, why))
		}
		if l.KL != nil && len(kl) >= fewest && l.KL.Mean > FallbackFactor*klMedian {
			reasons = append(reasons, fmt.Sprintf("KL divergence %.3g exceeds %d × the median of %.3g", l.KL.Mean, FallbackFactor, klMedian))
		}
		if len(reasons) > 0 {
			p.Fallback = append(p.Fallback, Fallback{l.Name, strings.Join(reasons, "; ")})
		}
	}
}

func (p *Profile) textEvidence() (bool, string) {
	c := &p.Calibration
	text := fmt.Sprintf("%d sequences of %d tokens; sources: %d", c.Sequences, c.SequenceLength, len(c.Sources))
	if len(c.Warnings) > 0 {
		text += "; " + strings.Join(c.Warnings, "; ")
	}
	return c.Sequences >= calib.MinSequences && len(c.Warnings) == 0, text
}

// listInputs names the inputs that were seen and for which f gives a reason, the first few in full.
func (p *Profile) listInputs(f func(in *Input) string) (bool, string) {
	var found []string
	seen := 0
	for i := range p.Inputs {
		if p.Inputs[i].Tokens == 0 {
			continue
		}
		seen++
		if reason := f(&p.Inputs[i]); reason != "" {
			found = append(found, p.Inputs[i].Name+" "+reason)
		}
	}
	if len(found) == 0 {
		return true, fmt.Sprintf("true of all %d inputs", seen)
	}
	return false, fmt.Sprintf("not of %d of %d inputs: %s", len(found), seen, few(found))
}

// few joins the first of many.
func few(s []string) string {
	const most = 6
	if len(s) <= most {
		return strings.Join(s, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(s[:most], ", "), len(s)-most)
}

func (p *Profile) expertEvidence() (bool, string) {
	var idle []string
	for i := range p.Inputs {
		if p.Inputs[i].Tokens == 0 {
			idle = append(idle, p.Inputs[i].Name)
		}
	}
	if len(idle) == 0 {
		return true, fmt.Sprintf("tokens reach all %d inputs", len(p.Inputs))
	}
	return false, fmt.Sprintf("no token reaches %d of %d inputs: %s", len(idle), len(p.Inputs), few(idle))
}

func (p *Profile) stabilityEvidence() (bool, string) {
	return p.listInputs(func(in *Input) string {
		if in.Stability.Stable {
			return ""
		}
		return fmt.Sprintf("(still changing after %d sequences)", in.Stability.SettledAfter)
	})
}

func (p *Profile) outlierEvidence() (bool, string) {
	return p.listInputs(func(in *Input) string {
		if n := len(in.OutlierFeatures); n > 0 {
			return fmt.Sprintf("(%d, up to %.3g)", n, in.FeatureRange.Max)
		}
		return ""
	})
}

func (p *Profile) clipEvidence() (bool, string) {
	return p.listInputs(func(in *Input) string {
		if in.Clip.MSE < ClipShare*in.Clip.MinMax {
			return fmt.Sprintf("(%.3g of %.3g)", in.Clip.MSE, in.Clip.MinMax)
		}
		return ""
	})
}

func (p *Profile) smoothingEvidence() (bool, string) {
	return p.listInputs(func(in *Input) string {
		if a := in.Smoothing.Alpha; a != nil {
			return fmt.Sprintf("(α %.1f: %.3g instead of %.3g)", *a, in.Smoothing.Best, in.Smoothing.Plain)
		}
		return ""
	})
}

func (p *Profile) weightEvidence() (bool, string) {
	var heavy []string
	for i := range p.Linears {
		if l := &p.Linears[i]; l.Weights.Kurtosis > HeavyTails {
			heavy = append(heavy, fmt.Sprintf("%s (%.1f)", l.Name, l.Weights.Kurtosis))
		}
	}
	if len(heavy) == 0 {
		return true, fmt.Sprintf("kurtosis at most %d in all %d linears", HeavyTails, len(p.Linears))
	}
	return false, fmt.Sprintf("kurtosis above %d in %d of %d linears: %s", HeavyTails, len(heavy), len(p.Linears), few(heavy))
}

func (p *Profile) blockEvidence() (bool, string) {
	var other []string
	for i := range p.Linears {
		if l := &p.Linears[i]; l.Type != p.Type {
			other = append(other, fmt.Sprintf("%s (%d columns: %s)", l.Name, l.In, l.Type))
		}
	}
	if len(other) == 0 {
		return true, fmt.Sprintf("true of all %d linears", len(p.Linears))
	}
	return false, fmt.Sprintf("not of %d of %d linears: %s", len(other), len(p.Linears), few(other))
}

func (p *Profile) errorEvidence() (bool, string) {
	errors, _ := p.errors()
	worst := slices.MaxFunc(p.Linears, func(a, b Linear) int { return cmp.Compare(a.OutputError, b.OutputError) })
	return len(p.Fallback) == 0, fmt.Sprintf("relative output error: median %.3g, largest %.3g in %s; %d linears listed for fallback",
		median(errors), worst.OutputError, worst.Name, len(p.Fallback))
}

func (p *Profile) klEvidence() (bool, string) {
	_, kl := p.errors()
	var worst *Linear
	sum := 0.0
	for i := range p.Linears {
		if l := &p.Linears[i]; l.KL != nil && l.expert <= 0 {
			sum += l.KL.Mean
			if worst == nil || l.KL.Mean > worst.KL.Mean {
				worst = l
			}
		}
	}
	return worst.KL.Mean <= FallbackFactor*median(kl), fmt.Sprintf(
		"%d linears, each quantized alone: KL divergence median %.3g, sum %.3g, largest %.3g ± %.1g in %s", len(kl), median(kl),
		sum, worst.KL.Mean, worst.KL.StdErr, worst.tensor)
}
