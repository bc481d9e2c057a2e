package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/store"
)

type statusOptions struct {
	JSON bool
}

func (a *app) statusCommand() *cobra.Command {
	var opts statusOptions
	cmd := &cobra.Command{
		Use:   "status FOLDER",
		Short: "Show how far a run with --work FOLDER is",
		Long: `Shows how far the run that keeps its work in FOLDER, or s3://BUCKET/PREFIX, is, whether it is being worked on, by which
workers if there are other machines, what is left, and how long that will take if layers go on taking as long as the last
ones did; before the first is done, how long a long run was predicted to take.`,
		Example: `  llmq status /scratch/qwen3-8b
  llmq status s3://models/qwen3-8b
  watch llmq status /scratch/qwen3-8b`,
		Args: exactArgs("FOLDER"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runStatus(cmd.Context(), args[0], opts) },
	}
	cmd.Flags().BoolVar(&opts.JSON, "json", false, "print one JSON object")
	return cmd
}

// statusReport is what status prints as JSON.
type statusReport struct {
	store.Standing
	Working bool `json:"working"` // a process works in the folder
	// Workers are those of a run on many machines that are there now.
	Workers    []store.Worker `json:"workers,omitempty"`
	Done       int            `json:"layers_done"`
	Left       int            `json:"layers_left"`
	PerLayer   *float64       `json:"seconds_per_layer"` // of the last ones; null before the first is done
	SecondsFor *float64       `json:"seconds_left"`
	Bytes      int64          `json:"work_bytes"`
	Noted      time.Time      `json:"noted"` // when the last of this was
	partial    bool           // its file has not got its name yet
}

func (a *app) runStatus(ctx context.Context, folder string, opts statusOptions) error {
	o, err := store.Look(ctx, folder)
	if err != nil {
		return err
	}
	r := statusReport{Standing: o.Standing, Working: o.Working, Workers: o.Workers, Bytes: o.Bytes, Noted: o.Noted, partial: o.Partial}
	left, lasts, known := r.Standing.Left()
	r.Done, r.Left = min(len(r.LayerSeconds), r.Layers), left
	if known {
		if len(r.LayerSeconds) == 0 && r.Working { // what was predicted when the phase began
			lasts = max(0, lasts-time.Since(o.Noted))
		}
		seconds := lasts.Seconds()
		r.SecondsFor = &seconds
		if left > 0 && len(r.LayerSeconds) > 0 {
			each := seconds / float64(left)
			r.PerLayer = &each
		}
	}
	if opts.JSON {
		return a.printJSON(&r)
	}
	return a.printStatus(&r)
}

// exists says whether the file of an output is there, or the first of its parts.
func exists(output string) bool {
	first, err := filepath.Glob(strings.TrimSuffix(output, ".gguf") + "-00001-of-*.gguf")
	_, whole := os.Stat(output)
	return whole == nil || err == nil && len(first) > 0
}

func (a *app) printStatus(r *statusReport) error {
	t := newTable(a.stdout)
	if r.Phase == "" {
		t.row("run", "nothing is done yet")
		return t.flush()
	}
	t.row("model", "%s", plain(r.Model))
	if r.Output != "" {
		t.row("output", "%s, %s by %s", plain(r.Output), r.Type, r.Method)
	}
	phase := map[string]string{
		store.PhaseTypes: "measuring what types cost", store.PhaseGradients: "measuring how outputs matter", store.PhaseLayers: "quantizing layers", store.PhaseHead: "quantizing the head",
		store.PhaseValidate: "validating the file", store.PhaseFinish: "finishing the file", store.PhaseEvaluate: "evaluating", store.PhaseProfile: "profiling", store.PhaseDone: "done",
	}[r.Phase]
	switch {
	case r.Standing.Done():
	case r.Phase == store.PhaseFinish && !r.Working && !r.partial && exists(r.Output):
		phase = "done, but it was killed before it cleared the folder: the same command does"
	case r.Working:
		phase += ", running"
	default:
		phase += ", stopped: the same command goes on"
	}
	if r.Run > 1 {
		phase = fmt.Sprintf("run %d, %s", r.Run, phase)
	}
	t.row("state", "%s", phase)
	what := "layer"
	if r.Shards {
		what = "shard"
	}
	if r.Layers > 0 {
		t.row(what+"s", "%d of %d", r.Done, r.Layers)
	}
	if r.PerLayer != nil && !r.Standing.Done() {
		t.row("speed", "%.1f s a %s", *r.PerLayer, what)
		last := ""
		if r.Head {
			last = ", and the head"
		}
		t.row("left", "%d %ss, about %v%s", r.Left, what, time.Duration(*r.SecondsFor*float64(time.Second)).Round(time.Second), last)
	}
	if len(r.LayerSeconds) == 0 && r.SecondsFor != nil && !r.Standing.Done() {
		t.row("left", "about %v, as was predicted", time.Duration(*r.SecondsFor*float64(time.Second)).Round(time.Second))
	}
	for i, w := range r.Workers {
		what := map[bool]string{true: "workers"}[i == 0]
		unit := cmp.Or(w.Unit, "waits")
		t.row(what, "%s, for %v: %d units done, %s", plain(w.Name), time.Since(w.Since).Round(time.Second), w.Done, plain(unit))
	}
	if !r.Standing.Done() {
		t.row("kept", "%s", formatBytes(r.Bytes))
	}
	t.row("as of", "%s, %v ago", r.Noted.Format(time.DateTime), time.Since(r.Noted).Round(time.Second))
	return t.flush()
}
