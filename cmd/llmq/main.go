// Command llmq turns a Hugging Face checkpoint into a GGUF file, quantized on a CPU one layer at a time, and measures
// what that cost. Each command has a file of its own.
//
// Exit codes: 0 success, 1 failure, 2 wrong usage, 3 a limit not met, 130 interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llmq/llmq/internal/atomicfile"
	"github.com/llmq/llmq/internal/mmap"
	"github.com/llmq/llmq/internal/ui"
	"github.com/llmq/llmq/kernels"
	"github.com/llmq/llmq/pipeline"
)

const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitLimit       = 3
	exitInterrupted = 130 // 128 + SIGINT, as shells count
	exitPipe        = 141 // 128 + SIGPIPE
)

// app is what commands touch outside of their options.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

func (a *app) progress() ui.Progress { return ui.New(a.stderr) }

// gcPercent keeps garbage low: the heap is a few large slices without pointers, which cost nothing to mark but whole
// gigabytes to leave lying around until as much again has been allocated.
const gcPercent = 15

// garbageBytes of garbage are as much as is worth keeping from the collector, and leastPercent where a run is so large that it would
// come all the time: at 5% it takes 1% of a run's time.
const (
	garbageBytes = 64 << 20
	leastPercent = 5
)

// garbagePercent is how much garbage there may be beside what a run has in use, bytes at its peak, as a percentage of that.
func garbagePercent(inUse int64) int {
	return int(max(leastPercent, min(gcPercent, 100*garbageBytes/max(inUse, 1))))
}

// keepLow has the collector keep garbage as low as a run with so many bytes in use allows, until the returned function is called.
func keepLow(inUse int64) (restore func()) {
	percent := garbagePercent(inUse)
	if percent == gcPercent || os.Getenv("GOGC") != "" {
		return func() {}
	}
	before := debug.SetGCPercent(percent)
	return func() { debug.SetGCPercent(before) }
}

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as nohup has it
		signal.Notify(signals, syscall.SIGHUP)
	}
	go interrupt(signals, cancel)
	// Whoever reads the progress may go without the work being lost: a write to a broken pipe fails, and ends nothing.
	signal.Ignore(syscall.SIGPIPE)
	os.Exit((&app{os.Stdin, os.Stdout, os.Stderr}).run(ctx, os.Args[1:]))
}

// patience is how long an interrupted command may take to stop by itself.
const patience = 1500 * time.Millisecond

// interrupt cancels the command at the first signal that asks the process to end. At the second, or when a computation
// is too long in noticing, it ends the process, which leaves nothing behind either.
func interrupt(signals <-chan os.Signal, cancel func()) {
	<-signals
	cancel()
	select {
	case <-signals:
	case <-time.After(patience):
	}
	atomicfile.Abandon()
	fmt.Fprintln(os.Stderr, "llmq: interrupted")
	os.Exit(exitInterrupted)
}

// run executes one command line and returns the exit code.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	var cmd *cobra.Command
	err := mmap.Guard(func() (err error) {
		cmd, err = root.ExecuteContextC(ctx)
		return err
	})
	var usage *usageError
	var limit *pipeline.LimitError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		fmt.Fprintf(a.stderr, "llmq: %v\nSee '%s --help'.\n", err, cmd.CommandPath())
		return exitUsage
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		fmt.Fprintln(a.stderr, "llmq: interrupted")
		return exitInterrupted
	case errors.Is(err, syscall.EPIPE): // nobody reads what is printed
		return exitPipe
	case errors.As(err, &limit):
		fmt.Fprintf(a.stderr, "llmq: %v\n", err)
		return exitLimit
	default:
		fmt.Fprintf(a.stderr, "llmq: %v\n", err)
		return exitFailure
	}
}

// checkTier refuses a value of kernels.TierEnv that package kernels has passed over, as it names no tier.
func checkTier(name string) error {
	if name == "" {
		return nil
	}
	if _, err := kernels.ParseTier(name); err != nil {
		return usagef("%s: %v", kernels.TierEnv, err)
	}
	return nil
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "llmq",
		Short: "Quantize language models on a CPU and measure what it cost",
		Long: `llmq turns a Hugging Face checkpoint into the best GGUF of its size, on a CPU, one layer at a time, and proves it by
measuring perplexity itself.

Where a command takes a CHECKPOINT or MODEL, hf:ORG/NAME[@REVISION] is one of the Hugging Face hub, which is fetched first.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 a limit not met, 130 interrupted.`,
		Example: `  llmq quantize Qwen3-8B -o qwen3-8b-q4_k.gguf --method gptq --bits 4 --calib wiki.train.txt
  llmq eval qwen3-8b-q4_k.gguf --text wiki.test.txt --base Qwen3-8B`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usagef("unknown command %q%s", args[0], didYouMean(args[0], commandNames(cmd), ""))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkTier(os.Getenv(kernels.TierEnv)); err != nil {
				return err
			}
			return refuseEmpty(cmd.Flags())
		},
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(a.downloadCommand(), a.convertCommand(), a.quantizeCommand(), a.evalCommand(), a.profileCommand(), a.imatrixCommand(), a.diffCommand(),
		a.reportCommand(), a.inspectCommand(), a.tokenizeCommand(), a.statusCommand(), a.benchCommand(), a.versionCommand(), a.manCommand())
	a.addWorker(root)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help", "completion":
			cmd.Args = namesOf(cmd)
			if !cmd.Runnable() { // then its arguments are not looked at
				cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			}
			continue
		}
		complete(cmd)
		cmd.Flags().VisitAll(takeOne)
	}
	return root
}

func commandNames(of *cobra.Command) (names []string) {
	for _, c := range of.Commands() {
		names = append(names, c.Name())
	}
	return names
}

// namesOf accepts what names a command, for help, or a shell, for completion: cobra prints its help for anything else, as if it were right.
func namesOf(cmd *cobra.Command) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		of, what := cmd, "shell"
		if cmd.Name() == "help" {
			of, what = cmd.Root(), "command"
		}
		for _, arg := range args {
			names := commandNames(of)
			i := slices.Index(names, arg)
			if i < 0 && len(names) == 0 {
				return usagef("unexpected argument %q", arg)
			}
			if i < 0 {
				return usagef("unknown %s %q: want one of %s", what, arg, strings.Join(names, ", "))
			}
			of, _, _ = of.Find([]string{arg})
		}
		return nil
	}
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// exactArgs accepts as many arguments as there are names, which say what is missing.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return usagef("no %s given", names[len(args)])
		}
		if len(args) > len(names) {
			return usagef("unexpected argument %q", args[len(names)])
		}
		return nil
	}
}

// flagError explains a flag that pflag refused.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || unknown.GetSpecifiedShortnames() != "" {
		return &usageError{err}
	}
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return usagef("unknown flag --%s%s", unknown.GetSpecifiedName(), didYouMean(unknown.GetSpecifiedName(), names, "--"))
}

// didYouMean returns "; did you mean X?" for the nearest of names, or nothing if none is near.
func didYouMean(got string, names []string, prefix string) string {
	best, bestDistance := "", len(got)/2+1
	for _, name := range names {
		if d := editDistance(got, name); d < bestDistance {
			best, bestDistance = name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %s%s?", prefix, best)
}

// editDistance is how many bytes must be inserted, deleted or replaced to make b of a (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1) // distances of a's prefix so far to b's prefixes
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
