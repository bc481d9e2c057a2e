package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/pipeline"
)

type convertOptions struct {
	outputOptions
	Type typeValue
}

func (o *convertOptions) AddFlags(cmd *cobra.Command) {
	o.Type.t = ggml.F16
	cmd.Flags().Var(&o.Type, "type", "type of the weights: f16, bf16, f32, q8_0 or another block type, rounded to nearest")
	o.outputOptions.AddFlags(cmd)
}

func (a *app) convertCommand() *cobra.Command {
	var opts convertOptions
	cmd := &cobra.Command{
		Use:   "convert CHECKPOINT -o FILE",
		Short: "Write a checkpoint as GGUF",
		Long: `Writes CHECKPOINT, a folder with config.json, tokenizer and safetensors or an F32, F16 or BF16 GGUF file (the first part,
if it is split; with --allow-requantize a quantized one), as a GGUF file. Norms and biases are F32, as GGUF readers
require.`,
		Example: `  llmq convert Qwen3-8B -o qwen3-8b-bf16.gguf --type bf16
  llmq convert Qwen3-8B -o qwen3-8b-q8_0.gguf --type q8_0 --dry-run`,
		Args: exactArgs("CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Checkpoint = args[0]
			return a.runConvert(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runConvert(ctx context.Context, opts convertOptions) error {
	src, plan, err := opts.open(ctx, a, pipeline.Recipe{Method: pipeline.RTN, Type: opts.Type.t, KeepCodes: true})
	if err != nil {
		return err
	}
	defer src.Close()
	if opts.DryRun {
		needs := plan.Needs(nil, 0, 0, 0)
		needs.Fetched = max(0, plan.PassingDisk(src, nil, 0, 0, false)-plan.Size())
		return a.printPlan(&opts.outputOptions, src, plan, needs, nil)
	}
	progress := a.progress()
	defer progress.Done()
	rep, err := pipeline.Run(ctx, src, plan, opts.Output, pipeline.Options{Overwrite: opts.Force, Progress: progress})
	if err != nil {
		return err
	}
	if err := opts.writeModelfile(rep); err != nil {
		return err
	}
	return a.printReport(&opts.outputOptions, rep)
}
