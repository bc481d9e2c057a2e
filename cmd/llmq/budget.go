package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"

	"github.com/llmq/llmq/pipeline"
)

// assigns says whether a budget decides on the tensors' types.
func (o *quantizeOptions) assigns() bool {
	return o.Fallback == 0 && !o.Method.m.Needs().Decides && (o.MaxSize != 0 || o.MaxBPW != 0)
}

// checkBudget checks what the budget has to do with other options.
func (o *quantizeOptions) checkBudget() error {
	switch {
	case !(o.MaxBPW >= 0) || math.IsInf(o.MaxBPW, 0):
		return usagef("--max-bpw %g: need more than 0, and finite", o.MaxBPW)
	case !o.assigns():
		return nil
	case len(o.Calib) == 0 && !o.PrintRecipe:
		return usagef("--max-size and --max-bpw assign types by what they do to predictions, which takes calibration text, " +
			"with --dry-run too: give some with --calib FILE")
	case o.Bits != 0 || o.Type.t != nil:
		return usagef("--max-size and --max-bpw choose the types, --bits and --type contradict them; " +
			"--tensor-type, --embedding-type and --output-type fix those of some tensors")
	case o.Method.m.Needs().Int8Inputs:
		return usagef("--max-size and --max-bpw choose the types, --method %s has q8_0 only", o.Method.m.Name())
	}
	return nil
}

func (o *quantizeOptions) budget() pipeline.Budget {
	return pipeline.Budget{MaxBytes: int64(o.MaxSize), MaxBPW: o.MaxBPW}
}

// assign spends the budget.
func (o *quantizeOptions) assign(ctx context.Context, src pipeline.Source, plan *pipeline.Plan, popt pipeline.Options) (*pipeline.Plan, error) {
	return pipeline.Assign(ctx, src, plan, o.budget(), filepath.Dir(o.Output), popt)
}

// printAssignment prints what a budget was spent on.
func (a *app) printAssignment(as *pipeline.Assignment) error {
	if as == nil {
		return nil
	}
	t := newTable(a.stdout)
	for i := range as.Tensors {
		r := &as.Tensors[i]
		t.row(r.Name, "%s\t%d bytes\tpredicted KL %.3g", r.Type, r.Bytes, r.PredictedKL)
	}
	if err := t.flush(); err != nil {
		return err
	}
	t = newTable(a.stdout)
	limits := ""
	if as.MaxBytes > 0 {
		limits = fmt.Sprintf("%d bytes, ", as.MaxBytes)
	}
	if as.MaxBPW > 0 {
		limits += fmt.Sprintf("%g bits per weight, ", as.MaxBPW)
	}
	t.row("budget", "%s%d bytes left", limits, as.SlackBytes)
	least := "the least within the budget"
	if as.Bound < as.PredictedKL {
		least = fmt.Sprintf("none within the budget is below %.4g", as.Bound)
	}
	t.row("predicted KL", "%.4g, %s; measured on %d tokens in %.1f s", as.PredictedKL, least, as.Tokens, as.Seconds)
	return t.flush()
}
