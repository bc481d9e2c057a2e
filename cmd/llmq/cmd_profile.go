package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/profile"
	"github.com/llmq/llmq/tokenizer"
)

type profileOptions struct {
	calibOptions
	Checkpoint    string
	Output        string
	Type          typeValue
	KL            int
	KLTokens      int
	FallbackError float64
	Pre           string
	Memory        byteSize
	Threads       int
	Force         bool
	Work          string
}

// Defaults of the divergence measurement: cheap beside the calibration.
const (
	defaultKL       = 8
	defaultKLTokens = 2048
)

func (o *profileOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.Output, "output", "o", "", "JSON `FILE` to write (required)")
	o.Type.t = ggml.Q4_K
	f.Var(&o.Type, "type", "block type that sensitivity is measured for, by rounding to nearest")
	f.IntVar(&o.KL, "kl", defaultKL, "measure the KL divergence when one linear alone is quantized, for the `N` linears with the largest errors (-1: all)")
	f.IntVar(&o.KLTokens, "kl-tokens", defaultKLTokens, "tokens to measure that on: of the --held-out text, else taken out of the calibration text")
	f.Float64Var(&o.FallbackError, "fallback-error", 0, fmt.Sprintf("list linears with a larger relative output error for fallback (default %d × the median)", profile.FallbackFactor))
	f.StringVar(&o.Pre, "pre", "", "`NAME` of the pre-tokenizer, for a tokenizer.json whose patterns are not known")
	o.Memory = defaultMemory
	f.Var(&o.Memory, "memory", memoryUsage)
	f.IntVar(&o.Threads, "threads", 0, "use `N` processors (0: all); the output does not depend on it")
	f.BoolVar(&o.Force, "force", false, "replace FILE if it exists")
	f.StringVar(&o.Work, "work", "", workUsage)
	o.calibOptions.AddFlags(cmd)
}

func (a *app) profileCommand() *cobra.Command {
	var opts profileOptions
	cmd := &cobra.Command{
		Use:   "profile CHECKPOINT --calib FILE -o FILE",
		Short: "Measure what quantizing a checkpoint has to deal with",
		Long: `Takes calibration text through CHECKPOINT and measures, for each linear, how its weights and inputs are distributed,
which input features are outliers, whether the ranges settled, how much rounding to --type costs, and how much of that
smoothing would save. Writes everything as JSON and prints a checklist with the conclusions.`,
		Example: `  llmq profile Qwen3-8B --calib wiki.train.txt -o profile.json
  llmq profile Qwen3-8B --calib chat.jsonl --held-out wiki.test.txt --type q4_0 --kl -1 -o profile.json`,
		Args: exactArgs("CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Checkpoint = args[0]
			if err := refuseZero(cmd.Flags(), "fallback-error"); err != nil {
				return err
			}
			return a.runProfile(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runProfile(ctx context.Context, opts profileOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	switch {
	case opts.Output == "":
		return usagef("no output given: -o FILE")
	case len(opts.Calib) == 0:
		return usagef("no calibration text given: --calib FILE")
	case opts.KL < -1:
		return usagef("--kl %d: need 0 or more, or -1 for all", opts.KL)
	case opts.KLTokens < 2*minKLContext:
		return usagef("--kl-tokens %d: need %d or more", opts.KLTokens, 2*minKLContext)
	case !(opts.FallbackError >= 0) || math.IsInf(opts.FallbackError, 0):
		return usagef("--fallback-error %g: need more than 0, and finite", opts.FallbackError)
	}
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	if err := a.checkOutput(opts.Output, opts.Force, append(opts.reads(), reading{opts.Checkpoint, "the input"})...); err != nil {
		return err
	}
	src, err := a.openSource(ctx, opts.Checkpoint, hf.Options{Pre: opts.Pre})
	if err != nil {
		return err
	}
	defer src.Close()
	opts.fit(src)
	set, err := opts.sample(a, src, 0)
	if err != nil {
		return err
	}
	progress := a.progress()
	defer progress.Done()
	popt := profile.Options{
		Type: opts.Type.t, FallbackError: opts.FallbackError, KLLinears: opts.KL,
		Memory: int64(opts.Memory), TempDir: filepath.Dir(opts.Output), Progress: progress,
	}
	if opts.KL != 0 {
		if err := opts.heldOut(src, set, &popt); err != nil {
			return err
		}
	}
	done := false
	if opts.Work != "" {
		work, err := opts.openWork(ctx, a, src, set, &popt)
		if err != nil {
			return err
		}
		defer work.Close()
		popt.Work = work
		defer func() {
			progress.Done()
			a.printWork(work, done, src)
		}()
	}
	p, err := profile.Run(ctx, src, set, popt)
	if err = unchanged(err, src); err != nil {
		return err
	}
	done = true
	progress.Done()
	data, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err
	}
	if err := writeFile(opts.Output, append(data, '\n'), opts.Force); err != nil {
		return err
	}
	return a.printProfile(opts, p)
}

// minKLContext keeps the scored half of a chunk from being next to nothing.
const minKLContext = 8

// heldOut finds the text that the KL divergence is measured on, in chunks as long as the calibration sequences.
func (o *profileOptions) heldOut(src pipeline.Source, set *calib.Set, popt *profile.Options) error {
	popt.Eval = eval.Options{Context: max(min(set.SeqLen, o.KLTokens), minKLContext), Memory: int64(o.Memory), TempDir: popt.TempDir}
	chunks := o.KLTokens / popt.Eval.Context
	if o.HeldOut == "" {
		if popt.HeldOut = set.HoldOut(max(1, chunks)); len(popt.HeldOut) < popt.Eval.Context {
			return usagef("the calibration text is one sequence, none of which can be held out: give --held-out FILE or --kl 0")
		}
		return nil
	}
	content, err := text.ReadUTF8(o.HeldOut)
	if err != nil {
		return err
	}
	tok, err := tokenizer.New(src)
	if err != nil {
		return err
	}
	popt.HeldOut = tok.Encode(content, tokenizer.EncodeOptions{})
	popt.Eval.Chunks = chunks
	if id, add := tok.BOS(); add {
		popt.Eval.BOS = &id
	}
	return nil
}

// writeFile writes a whole file or nothing.
func writeFile(path string, data []byte, force bool) error {
	f, err := atomicfile.Create(path, int64(len(data)), atomicfile.Options{Overwrite: force})
	if err != nil {
		return err
	}
	defer f.Abort() // no effect after Commit
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	return f.Commit()
}

func (a *app) printProfile(opts profileOptions, p *profile.Profile) error {
	t := newTable(a.stdout)
	t.row("model", "%s, %d layers", p.Model, p.Layers)
	t.row("calibration", "%d sequences of %d tokens, %s", p.Calibration.Sequences, p.Calibration.SequenceLength,
		strings.Join(p.Calibration.Sources, ", "))
	t.row("type", "%s, rounded to nearest", p.Type)
	t.row("took", "%.1f s, peak memory %s", p.Seconds, formatBytes(peakRSS()))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout)
	t = newTable(a.stdout)
	fmt.Fprintf(t.w, "linear\toutput error\tKL divergence\tlargest input\toutlier features\tα\n")
	inputs := map[string]*profile.Input{}
	for i := range p.Inputs {
		inputs[p.Inputs[i].Name] = &p.Inputs[i]
	}
	for i := range p.Linears {
		l := &p.Linears[i]
		in, kl, alpha := inputs[l.Input], "-", "-"
		if l.KL != nil {
			kl = fmt.Sprintf("%.3g ± %.1g", l.KL.Mean, l.KL.StdErr)
		}
		if in.Smoothing.Alpha != nil {
			alpha = fmt.Sprintf("%.1f", *in.Smoothing.Alpha)
		}
		fmt.Fprintf(t.w, "%s\t%.3g\t%s\t%.3g\t%d\t%s\n", l.Name, l.OutputError, kl, in.FeatureRange.Max, len(in.OutlierFeatures), alpha)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, f := range p.Fallback {
		fmt.Fprintf(a.stdout, "\nfallback: %s: %s", f.Linear, f.Reason)
	}
	if len(p.Fallback) > 0 {
		fmt.Fprintln(a.stdout)
	}
	fmt.Fprintln(a.stdout)
	for _, c := range p.Checklist {
		answer := "yes"
		if !c.OK {
			answer = "no"
		}
		fmt.Fprintf(a.stdout, "%s %s: %s\n", c.Question, answer, c.Evidence)
		if c.Advice != "" {
			fmt.Fprintf(a.stdout, "    → %s\n", c.Advice)
		}
	}
	_, err := fmt.Fprintf(a.stdout, "\neverything in %s\n", opts.Output)
	return err
}
