package main

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/pipeline"
)

// What is held out to validate the file on: for each heldOutShare tokens of calibration text one, and no fewer than
// minHeldOut of a text that has them. On so many the increase of a perplexity by 0.6% has a standard error of 0.1%.
const (
	heldOutShare = 4
	minHeldOut   = 16384
)

// validates says whether the file is compared to the original before it is kept.
func (o *quantizeOptions) validates() bool { return o.Method.m.Needs().Decides || o.MaxIncrease != 0 }

// checkAuto checks the options around the method auto and --max-ppl-increase.
func (o *quantizeOptions) checkAuto() error {
	switch {
	case o.Method.m.Needs().Decides && o.Smooth.s != nil:
		return usagef("--smooth: smoothing is one of the things that %s decides on", o.Method.m.Name())
	case o.validates() && o.lacksText():
		return usagef("the perplexity is measured on held-out calibration text: give some with --calib FILE")
	}
	return nil
}

// holdOut takes out of the set what the file is validated on: what was sampled beside the calibration, or a fifth of all
// if the text had not enough.
func (o *quantizeOptions) holdOut(a *app, set *calib.Set) ([]int32, error) {
	n := max(1, len(set.Sequences)/(heldOutShare+1), len(set.Sequences)-o.atMost()/set.SeqLen)
	held := set.HoldOut(n)
	if len(held) == 0 {
		return nil, errors.New("the calibration text is one sequence, none of which can be held out to measure perplexity on")
	}
	warnings := len(set.Warnings)
	set.WarnOverlap("what is held out of it", held)
	for _, w := range set.Warnings[warnings:] {
		a.warn("%s", w)
	}
	return held, nil
}

// heldOutTokens is how many tokens to sample beside the calibration set.
func (o *quantizeOptions) heldOutTokens() int {
	if !o.validates() {
		return 0
	}
	return max(o.atMost()/heldOutShare, minHeldOut)
}

// printDecisions prints a line for each layer with the way that each of its sites is quantized. Layers may have other
// sites than those before.
func (a *app) printDecisions(rep *pipeline.Report) error {
	if len(rep.Decisions) == 0 {
		return nil
	}
	var sites []string
	layers := map[int]map[string]string{}
	var order []int
	for i := range rep.Decisions {
		d := &rep.Decisions[i]
		site := ggml.ParseName(d.Group)
		if layers[site.Layer] == nil {
			layers[site.Layer] = map[string]string{}
			order = append(order, site.Layer)
		}
		layers[site.Layer][site.Stem] = decision(d)
		if !slices.Contains(sites, site.Stem) {
			sites = append(sites, site.Stem)
		}
	}
	t := newTable(a.stdout)
	t.row("decisions", "%s", strings.Join(sites, "\t"))
	for _, layer := range order {
		cells := make([]string, len(sites))
		for i, site := range sites {
			cells[i] = cmp.Or(layers[layer][site], "-")
		}
		t.row(ggml.LayerName(layer), "%s", strings.Join(cells, "\t"))
	}
	if err := t.flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.stdout, "Errors are of the following block's output, on tokens that took no part in the fit; in brackets, over that of gptq alone.")
	return err
}

// decision is "awq+gptq 0.0021 (0.87)".
func decision(d *pipeline.Decision) string {
	i := slices.IndexFunc(d.Candidates, func(c pipeline.Candidate) bool { return c.Method == d.Chosen })
	if i < 0 {
		return "not quantized"
	}
	chosen, alone := d.Candidates[i].Error, d.Candidates[0].Error
	if i == 0 || alone == 0 {
		return fmt.Sprintf("%s %.2g", d.Chosen, chosen)
	}
	return fmt.Sprintf("%s %.2g (%.2f)", d.Chosen, chosen, chosen/alone)
}

// printValidation says how far the file is from the original, and how it came there.
func (a *app) printValidation(v *pipeline.Validation) error {
	if v == nil {
		return nil
	}
	t := newTable(a.stdout)
	limit := "no limit given"
	if v.Limit > 0 {
		limit = fmt.Sprintf("limit %.4g%%: met", 100*v.Limit)
		if !v.Met {
			limit = fmt.Sprintf("limit %.4g%%: NOT met", 100*v.Limit)
		}
	}
	t.row("perplexity", "%s, original %s: %s ± %s on %d held-out tokens; %s", formatFigure("%.4f", v.Quantized),
		formatFigure("%.4f", v.Original), formatFigure("%+.3g%%", 100*v.Increase), formatFigure("%.2g%%", 100*v.StdErr), v.Tokens, limit)
	for i, run := range v.Runs {
		if len(v.Runs) > 1 {
			t.row(fmt.Sprintf("run %d", i+1), "%d linears in INT8, %s: %s ± %s", run.Int8, formatBytes(run.Bytes),
				formatFigure("%+.3g%%", 100*run.Increase), formatFigure("%.2g%%", 100*run.StdErr))
		}
	}
	return t.flush()
}

// shareValue is a flag such as 1% or 0.01.
type shareValue float64

func (v *shareValue) Type() string { return "SHARE" }

func (v *shareValue) String() string {
	switch {
	case *v == 0:
		return ""
	case *v < 1:
		return strconv.FormatFloat(float64(*v), 'g', -1, 64)
	}
	return strconv.FormatFloat(100*float64(*v), 'g', -1, 64) + "%"
}

func (v *shareValue) Set(s string) error {
	number, isPercent := strings.CutSuffix(strings.TrimSpace(s), "%")
	x, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if isPercent {
		x /= 100
	}
	switch {
	case err != nil || !(x > 0) || math.IsInf(x, 0):
		return errors.New("want a share above 0, such as 1% or 0.01")
	case !isPercent && x >= 1:
		return fmt.Errorf("that is %g%%; for %g%% write %s%%", 100*x, x, number)
	}
	*v = shareValue(x)
	return nil
}
