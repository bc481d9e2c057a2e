package main

import (
	"context"
	"fmt"

	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/report"
)

// runTask is eval --task.
func (a *app) runTask(ctx context.Context, opts evalOptions) error {
	if opts.Examples < 0 {
		return usagef("--examples %d: need 0 or more", opts.Examples)
	}
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	task, err := eval.LoadTask(opts.Task)
	if err != nil {
		return err
	}
	res, subject, err := a.answer(ctx, opts, opts.Model, task)
	if err != nil {
		return err
	}
	if opts.Base != "" {
		base, _, err := a.answer(ctx, opts, opts.Base, task)
		if err != nil {
			return err
		}
		res.Compare(base)
		res.Seconds += base.Seconds
	}
	if opts.JSON {
		err = a.printJSON(report.TaskEvaluation{Subject: subject, Task: opts.Task, TaskResult: res, PeakRSS: peakRSS()})
	} else {
		err = a.printTask(opts, res)
	}
	if m := res.Perplexity; err == nil && m != nil && (!m.Value.Finite() || m.Base != nil && !m.Base.Finite()) {
		return errInfinite
	}
	return err
}

// answer runs the task on one model, and describes that as the subject of the evaluation.
func (a *app) answer(ctx context.Context, opts evalOptions, path string, task *eval.Task) (*eval.TaskResult, report.Subject, error) {
	m, tok, err := a.openModel(ctx, path)
	if err != nil {
		return nil, report.Subject{}, err
	}
	defer m.Source.Close()
	m.Precision = opts.Precision.p
	progress := a.progress()
	defer progress.Done()
	res, err := eval.RunTask(ctx, m, tok, task, eval.TaskOptions{Limit: opts.Examples, Memory: int64(opts.Memory), Progress: progress})
	return res, opts.subject(m), unchanged(err, m.Source)
}

func (a *app) printTask(opts evalOptions, res *eval.TaskResult) error {
	t := newTable(a.stdout)
	t.row("model", "%s", opts.Model)
	t.row("task", "%s, %s, %d examples", opts.Task, res.Kind, res.Examples)
	if opts.Base != "" {
		t.row("base", "%s", opts.Base)
	}
	for _, m := range []struct {
		name  string
		m     *eval.Measure
		scale eval.Figure // percent
		unit  string
	}{
		{"accuracy", res.Accuracy, 100, "%%"},
		{"accuracy per character", res.AccuracyNorm, 100, "%%"},
		{"accuracy per token", res.AccuracyPerToken, 100, "%%"},
		{"perplexity of the word", res.Perplexity, 1, ""},
	} {
		if m.m == nil {
			continue
		}
		line := formatFigure("%.2f"+m.unit, m.scale*m.m.Value) + " ± " + formatFigure("%.2f", m.scale*m.m.StdErr)
		if m.m.Base != nil {
			line += fmt.Sprintf("; base %s, difference %s ± %s", formatFigure("%.2f"+m.unit, m.scale**m.m.Base),
				formatFigure("%+.2f", m.scale**m.m.Difference), formatFigure("%.2f", m.scale**m.m.DifferenceStdErr))
		}
		t.row(m.name, "%s", line)
	}
	t.row("took", "%.1f s, peak memory %s", res.Seconds, formatBytes(peakRSS()))
	return t.flush()
}
