package report

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/profile"
)

// profileView shows a profile.
type profileView struct {
	*profile.Profile
	ID, Name string
	Errors   *heatmap
	KL       *heatmap
	Ranges   *rangeTable
	Inputs   []pair // histograms
	Weights  []pair
	Outliers []featureRow
}

// featureRow lists an input's largest features.
type featureRow struct {
	Input    string
	Count    int // of outlier features
	Features []featureCell
}

type featureCell struct {
	Index   int
	AbsMax  string
	Outlier bool
}

func newProfile(index int, p *profile.Profile) *profileView {
	v := &profileView{Profile: p, ID: fmt.Sprintf("profile-%d", index+1), Name: filepath.Base(p.Model)}
	errors, kl := newHeatScale(), newHeatScale()
	for i := range p.Linears {
		errors.add(p.Linears[i].OutputError)
		if k := p.Linears[i].KL; k != nil {
			kl.add(k.Mean)
		}
	}
	name := func(i int) string { return p.Linears[i].Name }
	exp := errors.exponent()
	if v.Errors = newHeatmap(len(p.Linears), name, func(i int) heatCell {
		l := &p.Linears[i]
		return heatCell{scaled(l.OutputError, exp), fmt.Sprintf("%s: %s, %s", l.Name, num(l.OutputError), l.Type),
			errors.heat(l.OutputError)}
	}); v.Errors != nil {
		v.Errors.ID = v.ID + "-errors"
		v.Errors.Low, v.Errors.High = errors.ends()
		v.Errors.Caption = fmt.Sprintf("Output error when rounded to nearest %s, × %s", p.Type, powerOfTen(exp))
	}
	if kl.high > 0 {
		exp := kl.exponent()
		if v.KL = newHeatmap(len(p.Linears), name, func(i int) heatCell {
			l := &p.Linears[i]
			if l.KL == nil {
				return heatCell{}
			}
			return heatCell{scaled(l.KL.Mean, exp), fmt.Sprintf("%s: %s ± %s", l.Name, num(l.KL.Mean), num(l.KL.StdErr)),
				kl.heat(l.KL.Mean)}
		}); v.KL != nil {
			v.KL.ID = v.ID + "-kl"
			v.KL.Low, v.KL.High = kl.ends()
			v.KL.Caption = "KL divergence when one linear alone is quantized, × " + powerOfTen(exp)
			v.KL.Note = "Measured for the linears with the largest output errors."
		}
	}
	v.ranges()
	for i := range p.Inputs {
		in := &p.Inputs[i]
		v.Inputs = append(v.Inputs, magnitudes(in.Name, &in.Distribution))
		v.outliers(in)
	}
	for i := range p.Linears {
		v.Weights = append(v.Weights, magnitudes(ggml.ParseName(p.Linears[i].Name).With(""), &p.Linears[i].Weights))
	}
	return v
}

// magnitudes draws one distribution, on a linear axis from 0.
func magnitudes(name string, d *profile.Distribution) pair {
	return pair{
		Title: name, From: "0", To: num(d.HistogramRange),
		Note:  fmt.Sprintf("%s to %s, mean |x| %s, kurtosis %s", signed(d.Min), signed(d.Max), num(d.MeanAbs), num(d.Kurtosis)),
		Plots: []histogram{{"", name + ", magnitudes", steps(d.Histogram, 0, plotWidth)}},
	}
}

// signed is num with a true minus.
func signed(v float64) string { return strings.Replace(num(v), "-", "−", 1) }

func (v *profileView) ranges() {
	t := &rangeTable{
		ID: v.ID + "-ranges", Caption: "Ranges of the linears' inputs", Columns: []string{"median", "largest", "clip", "α"},
		Note: "Bars span the features' largest magnitudes from the least to the largest, with marks at the median and the 99th " +
			"percentile, on a logarithmic axis. “clip” is the symmetric eight-bit range with the least squared error, “α” the " +
			"smoothing that would lower the error, if any does.",
	}
	for i := range v.Profile.Inputs {
		in := &v.Profile.Inputs[i]
		q, alpha := &in.FeatureRange, "–"
		if in.Smoothing.Alpha != nil {
			alpha = fmt.Sprintf("%.1f", *in.Smoothing.Alpha)
		}
		t.Rows = append(t.Rows, rangeRow{Name: in.Name, Bars: []bar{newBar("", q.Min, q.Median, q.P99, q.Max)},
			Values: []string{num(q.Median), num(q.Max), num(in.Clip.MSE), alpha}})
	}
	if len(t.Rows) > 0 {
		t.scaleBars()
		v.Ranges = t
	}
}

func (v *profileView) outliers(in *profile.Input) {
	row := featureRow{Input: in.Name, Count: len(in.OutlierFeatures)}
	for _, f := range in.LargestFeatures {
		row.Features = append(row.Features, featureCell{f.Index, num(f.AbsMax), slices.Contains(in.OutlierFeatures, f.Index)})
	}
	v.Outliers = append(v.Outliers, row)
}
