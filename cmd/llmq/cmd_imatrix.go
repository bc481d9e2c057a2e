package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/arch"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/imatrix"
)

type imatrixOptions struct {
	calibOptions
	Model     string
	Output    string
	Head      bool
	Precision precisionValue
	Pre       string
	Memory    byteSize
	Threads   int
	Force     bool
}

func (o *imatrixOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.Output, "output", "o", "", "`FILE` to write: GGUF, or llama.cpp's older form if it ends in .dat (required)")
	f.BoolVar(&o.Head, "head", false, "sum the inputs of the head too, as llama-imatrix does with --process-output")
	f.Var(&o.Precision, "precision", precisionUsage)
	f.StringVar(&o.Pre, "pre", "", "`NAME` of the pre-tokenizer, for a tokenizer.json whose patterns are not known")
	o.Memory = defaultMemory
	f.Var(&o.Memory, "memory", memoryUsage)
	f.IntVar(&o.Threads, "threads", 0, "use `N` processors (0: all); the output does not depend on it")
	f.BoolVar(&o.Force, "force", false, "replace FILE if it exists")
	o.calibOptions.AddFlags(cmd)
}

func (a *app) imatrixCommand() *cobra.Command {
	var opts imatrixOptions
	cmd := &cobra.Command{
		Use:   "imatrix MODEL --calib FILE -o FILE",
		Short: "Write llama.cpp's importance matrix of a model",
		Long: `Takes calibration text through MODEL, a checkpoint folder or a GGUF file, and writes for each linear the sums of the squares of
its input's features, which llama-quantize --imatrix and llmq quantize --imatrix take.`,
		Example: `  llmq imatrix Qwen3-8B --calib wiki.train.txt -o imatrix.gguf
  llmq imatrix qwen3-8b-f16.gguf --calib wiki.train.txt -o imatrix.dat`,
		Args: exactArgs("MODEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Model = args[0]
			return a.runImatrix(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runImatrix(ctx context.Context, opts imatrixOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	switch {
	case opts.Output == "":
		return usagef("no output given: -o FILE")
	case len(opts.Calib) == 0:
		return usagef("no calibration text given: --calib FILE")
	}
	if err := setThreads(opts.Threads); err != nil {
		return err
	}
	if err := a.checkOutput(opts.Output, opts.Force, append(opts.reads(), reading{opts.Model, "the input"})...); err != nil {
		return err
	}
	src, err := a.openSource(ctx, opts.Model, hf.Options{Pre: opts.Pre})
	if err != nil {
		return err
	}
	defer src.Close()
	opts.fit(src)
	set, err := opts.sample(a, src, 0)
	if err != nil {
		return err
	}
	m, err := arch.Open(src)
	if err != nil {
		return err
	}
	m.Precision = opts.Precision.p
	progress := a.progress()
	defer progress.Done()
	matrix, err := imatrix.Collect(ctx, m, set, imatrix.Options{Head: opts.Head, Memory: int64(opts.Memory),
		TempDir: filepath.Dir(opts.Output), Progress: progress})
	if err = unchanged(err, src); err != nil {
		return err
	}
	progress.Done()
	for i := range matrix.Entries {
		if n := matrix.Entries[i].Unseen(); n > 0 {
			a.warn("%s: no token reached %d of %d experts: readers take all of their features for equally important",
				matrix.Entries[i].Name, n, len(matrix.Entries[i].Counts))
		}
	}
	if strings.HasSuffix(opts.Output, ".dat") {
		err = writeFile(opts.Output, matrix.Legacy(), opts.Force)
	} else {
		err = matrix.WriteGGUF(opts.Output, opts.Force)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s: sums of %d tensors over %d tokens\n", opts.Output, len(matrix.Entries), set.Tokens())
	return err
}
