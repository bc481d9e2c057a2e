package main

import (
	"bufio"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/tokenizer"
)

type tokenizeOptions struct {
	Model string
	Text  string
	NoBOS bool
	JSON  bool
}

func (o *tokenizeOptions) AddFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.Text, "text", "", "UTF-8 text `FILE`, or - for standard input (required)")
	f.BoolVar(&o.NoBOS, "no-bos", false, "leave out the BOS and EOS tokens that the model puts around a text")
	f.BoolVar(&o.JSON, "json", false, `print {"ids": [...]}`)
}

func (a *app) tokenizeCommand() *cobra.Command {
	var opts tokenizeOptions
	cmd := &cobra.Command{
		Use:   "tokenize MODEL --text FILE|-",
		Short: "Show how a model's tokenizer splits a text",
		Long: `Prints a line for each token: its id and its bytes, quoted. MODEL is a checkpoint folder or a GGUF file, which may
be a vocabulary without tensors. Spellings of control tokens in the text are text.`,
		Example: `  echo 'Hello world' | llmq tokenize Qwen3-8B --text -
  llmq tokenize model.gguf --text book.txt --json --no-bos`,
		Args: exactArgs("MODEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Model = args[0]
			return a.runTokenize(cmd.Context(), opts)
		},
	}
	opts.AddFlags(cmd)
	return cmd
}

func (a *app) runTokenize(ctx context.Context, opts tokenizeOptions) error {
	if opts.Text == "" {
		return usagef("no --text FILE given")
	}
	src, err := a.openHeaders(ctx, opts.Model, hf.Options{})
	if err != nil {
		return err
	}
	defer src.Close()
	tok, err := a.newTokenizer(opts.Model, src)
	if err != nil {
		return err
	}
	content, err := a.readText(opts.Text)
	if err != nil {
		return err
	}
	ids := tok.Encode(content, tokenizer.EncodeOptions{NoBOS: opts.NoBOS})
	if opts.JSON {
		return a.printJSON(struct {
			IDs []int32 `json:"ids"`
		}{ids})
	}
	w := bufio.NewWriter(a.stdout)
	for _, id := range ids {
		fmt.Fprintf(w, "%d\t%q\n", id, tok.Token(id))
	}
	return w.Flush()
}

// readText reads a file, or standard input for "-".
func (a *app) readText(path string) (string, error) {
	if path != "-" {
		return text.ReadUTF8(path)
	}
	return text.Read("standard input", a.stdin, 0)
}
