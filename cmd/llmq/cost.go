package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
)

// measureSpeeds takes a second or more, for which most tests do not wait.
var measureSpeeds = (*pipeline.Plan).MeasureSpeeds

// cost estimates the run of --dry-run on --machines. m is nil of a run that is not calibrated; set is nil where no text is given.
func (o *quantizeOptions) cost(ctx context.Context, plan *pipeline.Plan, m *model.Model, set *calib.Set) (*pipeline.Cost, error) {
	switch {
	case o.Machines > 1 && m == nil:
		return nil, usagef("--machines %d: a run without calibration text is not divided among machines", o.Machines)
	case o.Machines > 1:
		if err := plan.Recipe.Divisible(); err != nil {
			return nil, usagef("--machines %d: %w", o.Machines, err)
		}
	}
	tokens := o.atMost()
	if set != nil {
		tokens = set.Tokens()
	}
	at := func(s pipeline.Speeds) *pipeline.Cost {
		s.Link = float64(o.Link) / 8
		return plan.Cost(m, tokens, o.SeqLen, o.Machines, s)
	}
	speeds, times, err := measureSpeeds(plan, ctx, m, tokens, o.SeqLen, filepath.Dir(o.Output), func(s pipeline.Speeds) float64 { return at(s).Seconds })
	if err != nil {
		return nil, err
	}
	cost := at(speeds)
	cost.Vary(times)
	if speeds.Disk == 0 {
		cost.LeftOut = append(cost.LeftOut, "the disk, as nothing can be written to the output's folder")
	}
	if o.LowDisk {
		cost.LeftOut = append(cost.LeftOut, "what is fetched")
	}
	if o.validates() {
		cost.LeftOut = append(cost.LeftOut, "the validation, and runs that it leads to")
	}
	if o.assigns() {
		cost.LeftOut = append(cost.LeftOut, "the measurements that types are assigned by, which --dry-run has made")
	}
	return cost, nil
}

// printCost prints how long a run takes, and why; nothing of a nil Cost.
func (a *app) printCost(c *pipeline.Cost) error {
	if c == nil {
		return nil
	}
	t := newTable(a.stdout)
	where := "on this machine"
	if c.Machines > 1 {
		where = fmt.Sprintf("on %d machines like this one, %.0f%% of what they can do", c.Machines, 100*c.Efficiency)
	}
	if c.Slowest > 1.1*c.Fastest {
		where += fmt.Sprintf("; %s to %s, as its speed changes", roundTime(c.Fastest), roundTime(c.Slowest))
	}
	t.row("time", "about %s %s", roundTime(c.Seconds), where)
	for _, p := range c.Phases {
		t.row("", "%s\t%s", p.Name, roundTime(p.Seconds))
	}
	for _, tr := range c.Transfers {
		t.row("", "%s\t%s in, %s out of each machine", tr.Name, formatBytes(tr.In), formatBytes(tr.Out))
	}
	for _, what := range c.LeftOut {
		t.row("", "not counted: %s", what)
	}
	s := &c.Speeds
	t.row("measured", "%.0f GFLOP/s of products, %.0f of float32; a token's feature in %.2f ns, a weight in %.0f and %.0f more in 1000 columns; disk %s/s",
		s.Products/1e9, s.Float32/1e9, 1e9*s.Feature, 1e9*s.Weight, 1e12*s.Column, formatBytes(int64(s.Disk)))
	return t.flush()
}

// roundTime is a time in no more figures than an estimate has.
func roundTime(seconds float64) string {
	d := time.Duration(min(seconds, math.MaxInt64/1e9) * float64(time.Second))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < 100*time.Minute:
		return fmt.Sprintf("%.1f min", d.Minutes())
	}
	return fmt.Sprintf("%.1f h", d.Hours())
}

// linkValue is a flag's value such as 10Gbit: bits per second.
type linkValue float64

// defaultLink is a usual speed between servers.
const defaultLink = linkValue(25e9)

func (v *linkValue) Type() string   { return "SPEED" }
func (v *linkValue) String() string { return fmt.Sprintf("%gGbit", float64(*v)/1e9) }

func (v *linkValue) Set(s string) error {
	number, ok := strings.CutSuffix(strings.ToLower(s), "bit")
	unit := 1.0
	if i := len(number) - 1; ok && i >= 0 {
		if power := strings.IndexByte("kmgt", number[i]) + 1; power > 0 {
			number, unit = number[:i], math.Pow(1000, float64(power))
		}
	}
	n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if bits := n * unit; !ok || err != nil || !(bits >= 1) || math.IsInf(bits, 0) {
		return fmt.Errorf("%q is not a speed such as 100Mbit or 10Gbit", s)
	}
	*v = linkValue(n * unit)
	return nil
}
