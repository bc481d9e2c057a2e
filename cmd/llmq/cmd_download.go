package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/hub"
)

type downloadOptions struct {
	Name        string
	Output      string
	Connections int
	Force       bool
}

func (o *downloadOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.Output, "output", "o", "", "write the files to `FOLDER` instead of the hub's cache")
	f.IntVar(&o.Connections, "connections", hub.DefaultConnections, connectionsUsage)
	f.BoolVar(&o.Force, "force", false, "replace files of FOLDER that are not the repository's")
}

func (a *app) downloadCommand() *cobra.Command {
	var opts downloadOptions
	cmd := &cobra.Command{
		Use:   "download hf:ORG/NAME[@REVISION]",
		Short: "Fetch a model from the Hugging Face hub",
		Long: `Fetches what the other commands need of a model's repository: configuration, tokenizer, templates, card and weights, those
in safetensors where there are any. Prints the folder where it lies. Without -o that is in the hub's own cache, which
its other tools share: what one has fetched no other fetches again. Every other command fetches by itself where
hf:ORG/NAME stands in place of a path.

Sizes and digests are checked. What was interrupted goes on at the byte where it was. A repository that asks for consent
needs a token of an account that has given it: in HF_TOKEN, or as the hub's tools keep it. HF_ENDPOINT, HF_HOME,
HF_HUB_CACHE, HF_HUB_OFFLINE and HTTPS_PROXY are heeded. Nothing but these requests is sent.`,
		Example: `  llmq download hf:Qwen/Qwen3-8B
  llmq download hf:Qwen/Qwen3-8B@main -o Qwen3-8B
  llmq quantize hf:Qwen/Qwen3-8B -o qwen3-8b-q4_k.gguf --calib wiki.train.txt`,
		Args: exactArgs("hf:ORG/NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Name = args[0]
			return a.runDownload(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runDownload(ctx context.Context, opts downloadOptions) error {
	if !hub.IsName(opts.Name) {
		return usagef("%q: want %sORG/NAME", opts.Name, hub.Scheme)
	}
	ref, err := hub.ParseRef(opts.Name)
	switch {
	case err != nil:
		return &usageError{err}
	case opts.Connections < 1 || opts.Connections > maxConnections:
		return usagef("--connections %d: need 1 to %d", opts.Connections, maxConnections)
	case opts.Force && opts.Output == "":
		return usagef("--force is for -o FOLDER")
	}
	c, err := a.hub()
	if err != nil {
		return err
	}
	c.Connections = opts.Connections
	dir := opts.Output
	if dir != "" {
		err = c.Folder(ctx, ref, dir, opts.Force)
	} else {
		dir, err = c.Snapshot(ctx, ref)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(a.stdout, dir)
	return err
}

// maxConnections is beyond what any server likes.
const maxConnections = 64
