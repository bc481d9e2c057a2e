package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/eval"
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/report"
	"github.com/llmq/llmq/store"
	"github.com/llmq/llmq/tokenizer"
)

type evalOptions struct {
	Model       string
	Texts       []string
	Task        string
	Examples    int
	Context     int
	Chunks      int
	Preset      string
	Base        string
	Activations string
	Tokens      string
	Logits      string
	Force       bool
	Precision   precisionValue
	Memory      byteSize
	Threads     int
	Work        string
	JSON        bool
	engineOptions
}

func (o *evalOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&o.Texts, "text", nil, "UTF-8 text `FILE` to predict, or NAME=FILE to call it NAME (repeatable: a row for each)")
	f.StringVar(&o.Task, "task", "", "instead of --text, task `FILE` to answer: JSON records (.jsonl, .ndjson, .json) with \"question\", \"choices\" and \"answer\", or \"text\" whose last word is asked for; or llama.cpp's HellaSwag text")
	f.IntVar(&o.Examples, "examples", 0, "answer only the first `N` examples of the task (0: all)")
	f.IntVar(&o.Context, "context", 0, fmt.Sprintf("tokens in a chunk (default %d)", eval.DefaultContext))
	f.IntVar(&o.Chunks, "chunks", 0, "read only the first `N` chunks (0: all)")
	f.StringVar(&o.Preset, "preset", "", "gptq-2048: score every token of 2048-token chunks, as the GPTQ paper does")
	choose(f, "preset", []string{presetGPTQ})
	f.StringVar(&o.Base, "base", "", "also measure KL divergence and equal top tokens against `MODEL`; with --task, its accuracy")
	f.StringVar(&o.Tokens, "tokens", "", "instead of --text, safetensors `FILE` with token ids to run: the tensor \"tokens\", [sequences, length], each row by itself and with no BOS put in")
	f.StringVar(&o.Logits, "logits", "", "write what the model says of --tokens to safetensors `FILE`: the tensor \"logits\", float32 [sequences, length, vocabulary]")
	f.BoolVar(&o.Force, "force", false, "replace the file of --logits")
	f.StringVar(&o.Activations, "activations", "", "inputs of the layers' linears in eight bits and products in integers: q8 (steps for 32 values, stored weights: fast), int8-static, int8-dynamic or llm.int8; or exactly in f32")
	choose(f, "activations", activationNames)
	f.Var(&o.Precision, "precision", precisionUsage)
	o.Memory = defaultMemory
	f.Var(&o.Memory, "memory", memoryUsage)
	f.IntVar(&o.Threads, "threads", 0, "use `N` processors (0: all)")
	f.StringVar(&o.Work, "work", "", workUsage+"; of --text")
	o.engineOptions.AddFlags(cmd)
	f.BoolVar(&o.JSON, "json", false, "print one JSON object")
}

// What --preset and --activations can be.
const presetGPTQ = "gptq-2048"

var activationNames = []string{"f32", string(eval.Q8), string(eval.Int8Static), string(eval.Int8Dynamic), string(eval.LLMInt8)}

func (a *app) evalCommand() *cobra.Command {
	var opts evalOptions
	cmd := &cobra.Command{
		Use:   "eval MODEL --text FILE | --task FILE | --tokens FILE --logits FILE",
		Short: "Measure perplexity, KL divergence from a base model, and accuracy",
		Long: `Measures how well MODEL, a checkpoint folder or a GGUF file of any supported type, predicts a text.

The protocol is llama.cpp's: consecutive chunks of --context tokens, the first token of each replaced by BOS where the
model adds one, the second half of each chunk scored. With --base both models read the same tokens in lockstep.

With --work FOLDER --listen HOST:PORT other machines take part: the text is divided among them, and the figures are the same
to the last bit. See llmq worker.

A task counts right answers: by the probability of each choice, by that per character, and by that per token; or by
whether the model would write a text's last word.`,
		Example: `  llmq eval qwen3-8b-q4_k.gguf --text wiki.test.txt
  llmq eval qwen3-8b-q4_k.gguf --text wiki.test.txt --base Qwen3-8B --chunks 100 --json
  llmq eval qwen3-8b-q4_k.gguf --text wiki=wiki.test.txt --text chat=chats.txt --base Qwen3-8B
  llmq eval Qwen3-8B --text wiki.test.txt --preset gptq-2048
  llmq eval qwen3-8b-q4_k.gguf --task arc.jsonl --base Qwen3-8B`,
		Args: exactArgs("MODEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Model = args[0]
			if err := refuseZero(cmd.Flags(), "context"); err != nil {
				return err
			}
			if err := opts.checkEngine(opts.Work); err != nil {
				return err
			}
			if cmd.Flags().Changed("tokens") || cmd.Flags().Changed("logits") {
				for _, name := range []string{"text", "task", "examples", "context", "chunks", "preset", "base", "activations", "work"} {
					if cmd.Flags().Changed(name) {
						return usagef("--tokens and --%s exclude each other", name)
					}
				}
				if opts.Tokens == "" || opts.Logits == "" {
					return usagef("--tokens FILE and --logits FILE go together")
				}
				return a.runLogits(cmd.Context(), opts)
			}
			if opts.Force {
				return usagef("--force is for --logits")
			}
			if cmd.Flags().Changed("task") {
				for _, name := range []string{"text", "context", "chunks", "preset", "activations", "work"} {
					if cmd.Flags().Changed(name) {
						return usagef("--task and --%s exclude each other", name)
					}
				}
				return a.runTask(cmd.Context(), opts)
			}
			if cmd.Flags().Changed("examples") {
				return usagef("--examples is for --task; the limit for --text is --chunks")
			}
			return a.runEval(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runEval(ctx context.Context, opts evalOptions) (rerr error) {
	texts, err := parseTexts(opts.Texts)
	if err != nil {
		return err
	}
	if opts.Work != "" && len(texts) > 1 {
		return usagef("--work is for one --text, not %d", len(texts))
	}
	eopt := eval.Options{Context: opts.Context}
	switch opts.Preset {
	case "":
	case presetGPTQ:
		if opts.Context != 0 {
			return usagef("--preset %s sets the context; give no --context", opts.Preset)
		}
		eopt = eval.GPTQ2048()
	default:
		return usagef("unknown preset %q; known: %s", opts.Preset, presetGPTQ)
	}
	precision := opts.Precision.p
	if opts.Context < 0 || opts.Chunks < 0 {
		return usagef("--context and --chunks need 0 or more")
	}
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	progress := a.progress()
	defer progress.Done()
	eopt.Chunks, eopt.Memory, eopt.Progress = opts.Chunks, int64(opts.Memory), progress

	for i := range texts {
		if texts[i].content, err = text.ReadUTF8(texts[i].Path); err != nil {
			return err
		}
	}
	m, tok, err := a.openModel(ctx, opts.Model)
	if err != nil {
		return err
	}
	defer m.Source.Close()
	switch act := eval.Activations(opts.Activations); act {
	case eval.Float, eval.Q8, eval.Int8Static, eval.Int8Dynamic, eval.LLMInt8:
		eopt.Activations = act
	case "f32":
		precision = kernels.F32
	default:
		return usagef("unknown activations %q; known: %s", act, strings.Join(activationNames, ", "))
	}
	longest := 0
	for i := range texts {
		texts[i].tokens = tok.Encode(texts[i].content, tokenizer.EncodeOptions{})
		longest = max(longest, min(cmp.Or(eopt.Context, eval.DefaultContext), len(texts[i].tokens)))
	}
	a.warnContext(m.Source, longest)
	m.Precision = precision
	sources := []model.Source{m.Source}
	if id, add := tok.BOS(); add && !eopt.ScoreAll {
		eopt.BOS = &id // the GPTQ paper's protocol replaces nothing
	}
	if opts.Base != "" {
		base, baseTok, err := a.openModel(ctx, opts.Base)
		if err != nil {
			return err
		}
		defer base.Source.Close()
		sources = append(sources, base.Source)
		for _, t := range texts {
			if !slices.Equal(t.tokens, baseTok.Encode(t.content, tokenizer.EncodeOptions{})) {
				return fmt.Errorf("%s and %s split %s into different tokens: their predictions cannot be compared",
					opts.Model, opts.Base, t.Path)
			}
		}
		a.warnContext(base.Source, longest)
		base.Precision = precision
		eopt.Base = base
	}
	done := false
	var work store.Folder
	if opts.Work != "" {
		if work, err = opts.openWork(ctx, a, m, texts[0].tokens, &eopt); err != nil {
			return err
		}
		defer work.Close()
		eopt.Work = work
		defer func() {
			progress.Done()
			sources := []model.Source{m.Source}
			if eopt.Base != nil {
				sources = append(sources, eopt.Base.Source)
			}
			a.printWork(work, done, sources...)
		}()
	}
	if opts.many() {
		eng, err := opts.startEval(ctx, a, &opts, work, &eopt)
		if err != nil {
			return err
		}
		defer func() { eng.end(ctx, rerr) }()
		eopt.Engine = eng
	}
	infinite := false
	for i := range texts {
		t := &texts[i]
		t.Result, err = eval.Perplexity(ctx, m, t.tokens, eopt)
		if err = unchanged(err, sources...); err != nil {
			if len(texts) > 1 {
				err = fmt.Errorf("%s: %w", t.Path, err)
			}
			return err
		}
		infinite = infinite || !t.Perplexity.Finite() || t.Divergence != nil && !t.BasePerplexity.Finite()
	}
	done = true
	progress.Done()
	if d := texts[0].Divergence; d != nil && d.CommonTokens > 0 {
		a.warn("%s has %d tokens, the base %s %d: divergences are of the %d that both have", opts.Model, m.Vocab, opts.Base,
			eopt.Base.Vocab, d.CommonTokens)
	}
	subject := opts.subject(m)
	evaluation := func(t *namedText) report.Evaluation {
		return report.Evaluation{Subject: subject, Text: t.Path, Name: t.Name, Activations: opts.Activations, Result: t.Result,
			PeakRSS: peakRSS()}
	}
	switch {
	case opts.JSON && len(texts) == 1:
		err = a.printJSON(evaluation(&texts[0]))
	case opts.JSON:
		var all struct {
			Evaluations []report.Evaluation `json:"evaluations"`
		}
		for i := range texts {
			all.Evaluations = append(all.Evaluations, evaluation(&texts[i]))
		}
		err = a.printJSON(all)
	case len(texts) == 1:
		err = a.printEval(opts, eopt, &texts[0])
	default:
		err = a.printTexts(opts, texts)
	}
	if err == nil && infinite {
		return errInfinite
	}
	return err
}

// namedText is a text to predict, and what was measured on it.
type namedText struct {
	Name, Path string // Name is "" without one
	content    string
	tokens     []int32
	*eval.Result
}

// label is what rows call a text.
func (t *namedText) label() string { return cmp.Or(t.Name, t.Path) }

var textName = regexp.MustCompile(`^[A-Za-z0-9_.-]+=`)

// parseTexts takes FILE and NAME=FILE. A file that has such a name itself is a file.
func parseTexts(values []string) ([]namedText, error) {
	if len(values) == 0 || slices.Contains(values, "") {
		return nil, usagef("no --text FILE given, nor --task FILE")
	}
	var texts []namedText
	for _, v := range values {
		t := namedText{Path: v}
		if prefix := textName.FindString(v); prefix != "" {
			if _, err := os.Stat(v); err != nil {
				t.Name, t.Path = prefix[:len(prefix)-1], v[len(prefix):]
			}
		}
		if slices.ContainsFunc(texts, func(o namedText) bool { return o.label() == t.label() }) {
			return nil, usagef("--text %s: %q is there already", v, t.label())
		}
		texts = append(texts, t)
	}
	return texts, nil
}

// printTexts prints a row for each text.
func (a *app) printTexts(opts evalOptions, texts []namedText) error {
	t := newTable(a.stdout)
	t.row("model", "%s", opts.Model)
	t.row("protocol", "chunks of %d tokens", texts[0].Context)
	header := "tokens scored\tperplexity"
	if opts.Base != "" {
		t.row("base", "%s", opts.Base)
		header += "\tincrease\tKL divergence\t99.9th percentile\tsame top\tsame top five\tRMS Δp"
	}
	t.row("text", "%s", header)
	for i := range texts {
		x := &texts[i]
		row := fmt.Sprintf("%d\t%s ± %s", x.TokensScored, formatFigure("%.4f", x.Perplexity), formatFigure("%.4f", x.StdErr))
		if d := x.Divergence; d != nil {
			below := ""
			if d.BelowFloat16() {
				below = " (below float16's)"
			}
			row += fmt.Sprintf("\t%s ± %s\t%.5f ± %.5f%s\t%.4f ± %.4f\t%.2f%% ± %.2f%%\t%.2f%% ± %.2f%%\t%.3f%% ± %.3f%%",
				formatFigure("%+.2f%%", 100*d.Increase), formatFigure("%.2f%%", 100*d.IncreaseStdErr), d.KL, d.KLStdErr, below,
				d.KLP999, d.KLP999StdErr, 100*d.SameTop, 100*d.SameTopStdErr, 100*d.SameTop5, 100*d.SameTop5StdErr,
				100*d.RMSShift, 100*d.RMSShiftStdErr)
		}
		t.row(x.label(), "%s", row)
	}
	return t.flush()
}

// errInfinite makes a command fail that has measured, and printed, what no text that suits its model gives.
var errInfinite = errors.New("warning: a perplexity is infinite, null in JSON: the mean log-likelihood of a token is below −709; the model is broken, or of another language than the text")

// formatFigure formats a figure, or says that it is none.
func formatFigure(format string, f eval.Figure) string {
	if !f.Finite() {
		return "infinite"
	}
	return fmt.Sprintf(format, f)
}

func (a *app) printEval(opts evalOptions, eopt eval.Options, x *namedText) error {
	res := x.Result
	t := newTable(a.stdout)
	t.row("model", "%s", opts.Model)
	t.row("text", "%s, %d tokens", x.label(), len(x.tokens))
	scored, bos := "second half scored", "as it is"
	if eopt.ScoreAll {
		scored = "every token scored"
	}
	if res.BOS {
		bos = "replaced by BOS"
	}
	t.row("protocol", "chunks of %d tokens, the first %s, %s", res.Context, bos, scored)
	if opts.Activations != "" {
		t.row("activations", "%s", opts.Activations)
	}
	t.row("scored", "%d tokens in %d chunks", res.TokensScored, res.Chunks)
	t.row("perplexity", "%s ± %s", formatFigure("%.4f", res.Perplexity), formatFigure("%.4f", res.StdErr))
	if d := res.Divergence; d != nil {
		t.row("base", "%s, perplexity %s (%s ± %s)", opts.Base, formatFigure("%.4f", d.BasePerplexity),
			formatFigure("%+.2f%%", 100*d.Increase), formatFigure("%.2f%%", 100*d.IncreaseStdErr))
		if d.CommonTokens > 0 {
			t.row("compared", "the %d tokens that both vocabularies have", d.CommonTokens)
		}
		t.row("KL divergence", "%.5f ± %.5f, median %.5f, 99th percentile %.5f, 99.9th %.5f ± %.5f", d.KL, d.KLStdErr, d.KLMedian,
			d.KLP99, d.KLP999, d.KLP999StdErr)
		if d.BelowFloat16() {
			t.row("", "below %.1g, what logits in float16 can tell", d.Float16)
		}
		t.row("same top token", "%.2f%% ± %.2f%%, of the top five %.2f%% ± %.2f%%", 100*d.SameTop, 100*d.SameTopStdErr,
			100*d.SameTop5, 100*d.SameTop5StdErr)
		t.row("RMS Δp", "%.3f%% ± %.3f%%", 100*d.RMSShift, 100*d.RMSShiftStdErr)
	}
	t.row("took", "%.1f s, %.0f tokens/s, peak memory %s", res.Seconds, res.TokensPerSecond, formatBytes(peakRSS()))
	return t.flush()
}

// subject describes m, the model being evaluated.
func (o *evalOptions) subject(m *model.Model) report.Subject {
	s := report.Subject{Model: o.Model, Base: o.Base}
	src := m.Source
	if scaled, ok := src.(*gguf.Scaled); ok {
		src = scaled.File // as it is stored
	}
	var weights int64
	for _, t := range src.Tensors() {
		s.Bytes += t.Bytes()
		weights += int64(t.Elements())
	}
	s.BitsPerWeight = 8 * float64(s.Bytes) / float64(max(weights, 1))
	if f, ok := src.(*gguf.File); ok {
		s.Bytes = f.Size()
	}
	return s
}

// openModel opens a model and its tokenizer; the caller closes the model's Source.
func (a *app) openModel(ctx context.Context, path string) (*model.Model, *tokenizer.Tokenizer, error) {
	src, err := a.openSource(ctx, path, hf.Options{})
	if err != nil {
		return nil, nil, err
	}
	m, err := arch.Open(src)
	if err != nil {
		src.Close()
		return nil, nil, err
	}
	tok, err := a.newTokenizer(path, src)
	if err != nil {
		src.Close()
		return nil, nil, err
	}
	if tok.VocabSize() > m.Vocab {
		src.Close()
		return nil, nil, fmt.Errorf("%s: the tokenizer has %d tokens, the embedding %d rows", path, tok.VocabSize(), m.Vocab)
	}
	return m, tok, nil
}
