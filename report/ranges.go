package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/quant"
)

// rangeTable shows, on one logarithmic axis, between which magnitudes the channels of some inputs or weights lie.
type rangeTable struct {
	ID, Caption, Note string
	Columns           []string
	Rows              []rangeRow
	Labels            bool   // whether bars have any
	Low, High         string // ends of the axis
	Limit             int    // where LLM.int8's magnitude is on the axis, in percent; 0: off it
}

// rangeRow has one bar, or two, before and after.
type rangeRow struct {
	Name   string
	Bars   []bar
	Values []string
}

// bar is a range with its median and 99th percentile, in percent of the axis.
type bar struct {
	Label, Title         string
	From, To, P50, P99   int
	least, p50, p99, top float64
}

func newBar(label string, least, median, p99, largest float64) bar {
	return bar{Label: label, least: least, p50: median, p99: p99, top: largest, Title: strings.TrimSpace(fmt.Sprintf(
		"%s median %s, 99th percentile %s, largest %s", label, num(median), num(p99), num(largest)))}
}

// outlierMagnitude is that of LLM.int8's criteria.
const outlierMagnitude = 6

// scaleBars puts all bars on the axis that holds their medians and tops; what is far below the medians is cut off.
func (t *rangeTable) scaleBars() {
	lo, hi := math.Inf(1), 0.0
	for _, r := range t.Rows {
		for _, b := range r.Bars {
			if b.p50 > 0 {
				lo = min(lo, max(b.least, b.p50/16))
			}
			hi = max(hi, b.top)
		}
	}
	if !(hi > lo) {
		lo, hi = hi/10, max(hi, 1)
	}
	lo = math.Pow(2, math.Floor(math.Log2(max(lo, hi/1e6))))
	hi = math.Pow(2, math.Ceil(math.Log2(hi)))
	at := func(v float64) int {
		if v <= lo {
			return 0
		}
		return int(math.Round(100 * math.Log(v/lo) / math.Log(hi/lo)))
	}
	t.Low, t.High = num(lo), num(hi)
	if outlierMagnitude > lo && outlierMagnitude < hi {
		t.Limit = at(outlierMagnitude)
	}
	for i := range t.Rows {
		for k := range t.Rows[i].Bars {
			b := &t.Rows[i].Bars[k]
			b.From, b.To, b.P50, b.P99 = at(b.least), at(b.top), at(b.p50), at(b.p99)
		}
	}
}

// pair is the histograms of a group's inputs or weights before and after, one above the other on one axis.
type pair struct {
	Title, Note string
	Plots       []histogram
	From, To    string // ends of the axis
}

// histogram is drawn as one path in a box of plotWidth×plotHeight; bars are as high as the logarithm of their counts.
type histogram struct{ Label, Title, Path string }

const (
	plotWidth  = 160
	plotHeight = 40
)

// steps draws counts as bars of equal width from x = from to x = to.
func steps(counts []int64, from, to float64) string {
	var most int64
	for _, n := range counts {
		most = max(most, n)
	}
	if most == 0 {
		return ""
	}
	var b strings.Builder
	width := (to - from) / float64(len(counts))
	fmt.Fprintf(&b, "M%.4g %d", from, plotHeight)
	for i, n := range counts {
		h := plotHeight * math.Log1p(float64(n)) / math.Log1p(float64(most))
		fmt.Fprintf(&b, "V%.4gH%.4g", plotHeight-h, from+width*float64(i+1))
	}
	fmt.Fprintf(&b, "V%dZ", plotHeight)
	return b.String()
}

// newPair draws two spreads on one axis of octaves.
func newPair(title string, before, after *pipeline.Spread) pair {
	octaves := func(s *pipeline.Spread) (lo, hi float64) {
		hi = math.Log2(s.HistogramRange)
		return hi - float64(len(s.Histogram))/2, hi
	}
	lo, hi := octaves(before)
	lo2, hi2 := octaves(after)
	lo, hi = min(lo, lo2), max(hi, hi2)
	p := pair{Title: title, From: num(math.Exp2(lo)), To: num(math.Exp2(hi)),
		Note: fmt.Sprintf("largest %s → %s, channels' median %s → %s", num(before.Largest), num(after.Largest), num(before.Median),
			num(after.Median))}
	for _, h := range []struct {
		label string
		s     *pipeline.Spread
	}{{"before", before}, {"after", after}} {
		from, to := octaves(h.s)
		x := func(v float64) float64 { return (v - lo) / (hi - lo) * plotWidth }
		p.Plots = append(p.Plots, histogram{h.label, title + " " + h.label + " smoothing", steps(h.s.Histogram, x(from), x(to))})
	}
	return p
}

// arrow keeps a line from breaking before it.
const arrow = "\u00a0→ "

// smoothing draws the groups that transforms have changed.
func (r *run) smoothing() {
	t := &rangeTable{
		ID: r.ID + "-smoothing", Labels: true, Caption: "Ranges before and after smoothing",
		Columns: []string{"error", "α", "largest"},
		Note: "Bars span the channels' largest magnitudes from the least to the largest, with marks at the median and the 99th " +
			"percentile, on a logarithmic axis. Errors are those of rounding to nearest, at the output of the block that follows.",
	}
	for i := range r.ranges {
		g := &r.ranges[i]
		note, alpha := "", ""
		changed := false
		for _, f := range r.Foldings {
			if f.Group != g.Group || f.Skipped != "" {
				continue
			}
			changed = true
			if note == "" {
				note = num(f.Before)
			}
			note += arrow + num(f.After)
			alpha = strings.TrimPrefix(alpha+", "+fmt.Sprintf("%.2f", f.Alpha), ", ")
		}
		if !changed {
			continue
		}
		b, a := &g.InputBefore, &g.InputAfter
		t.Rows = append(t.Rows, rangeRow{Name: g.Group, Values: []string{note, alpha, num(b.Largest) + arrow + num(a.Largest)},
			Bars: []bar{newBar("before", b.Least, b.Median, b.P99, b.Largest), newBar("after", a.Least, a.Median, a.P99, a.Largest)}})
		r.Histograms = append(r.Histograms, newPair(g.Group+", input", b, a),
			newPair(g.Group+", weights", &g.WeightsBefore, &g.WeightsAfter))
	}
	if len(t.Rows) > 0 {
		t.scaleBars()
		r.Smoothing = t
	}
	r.Foldings = slices.DeleteFunc(slices.Clone(r.Foldings), func(f quant.Folding) bool { return f.Skipped == "" })
}
