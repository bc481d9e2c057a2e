package main

import (
	"bytes"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/report"
)

type reportOptions struct {
	Inputs []string
	Output string
	Force  bool
}

func (o *reportOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.Output, "output", "o", "", "HTML `FILE` to write (required)")
	f.BoolVar(&o.Force, "force", false, "replace FILE if it exists")
}

func (a *app) reportCommand() *cobra.Command {
	var opts reportOptions
	cmd := &cobra.Command{
		Use:   "report RUN.json|GGUF... -o FILE",
		Short: "Make a page to look at of what was measured",
		Long: `Writes one HTML page, which needs no network and no other file, about any number of inputs: JSON that quantize, convert
or eval printed with --json or that profile wrote, and GGUF files that llmq wrote. It shows the error and the type of
every linear, ranges and histograms before and after smoothing, outlier features, and perplexity against size.

An evaluation is shown with the file that it is about, and that with the quantization that wrote it, if their names,
without folders, and their sizes in bytes agree.`,
		Example: `  llmq quantize Qwen3-8B -o q4.gguf --calib wiki.train.txt --json > q4.json
  llmq eval q4.gguf --text wiki.test.txt --base Qwen3-8B --json > q4-eval.json
  llmq report q4.json q4-eval.json profile.json -o report.html`,
		Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			opts.Inputs = args
			return a.runReport(opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runReport(opts reportOptions) error {
	switch {
	case len(opts.Inputs) == 0:
		return usagef("no RUN.json or GGUF file given")
	case opts.Output == "":
		return usagef("no output given: -o FILE")
	}
	var reads []reading
	for _, path := range opts.Inputs {
		reads = append(reads, reading{path, "an input"})
	}
	if err := a.checkOutput(opts.Output, opts.Force, reads...); err != nil {
		return err
	}
	var inputs []*report.Input
	for _, path := range opts.Inputs {
		in, err := report.Read(path)
		if err != nil {
			return err
		}
		inputs = append(inputs, in)
	}
	var page bytes.Buffer
	if err := report.Write(&page, inputs); err != nil {
		return err
	}
	return writeFile(opts.Output, page.Bytes(), opts.Force)
}
