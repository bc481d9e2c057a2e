package main

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/llmq/llmq/calib"
	"github.com/llmq/llmq/internal/text"
	"github.com/llmq/llmq/model"
	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/tokenizer"
)

// calibOptions are what the commands that calibrate share.
type calibOptions struct {
	Calib       []string
	CalibTokens int // 0: not given
	enough      int // tokens to calibrate the model on unless CalibTokens says how many
	SeqLen      int
	Seed        uint64
	HeldOut     string

	cmd *cobra.Command
}

func (o *calibOptions) AddFlags(cmd *cobra.Command) {
	o.cmd = cmd
	f := cmd.Flags()
	f.StringArrayVar(&o.Calib, "calib", nil, "calibration `FILE`: UTF-8 text, or JSON records (.jsonl, .ndjson, .json) with \"text\", \"messages\", ShareGPT's \"conversations\", Alpaca's \"instruction\" and \"output\", or \"prompt\" and \"completion\", and perhaps a \"domain\" (repeatable)")
	f.IntVar(&o.CalibTokens, "calib-tokens", 0, fmt.Sprintf("tokens to calibrate on (default %d for models of fewer than 1e9 weights, %d for others, or all there are if not fewer than %d)", calib.SmallModelTokens, calib.DefaultTokens, calib.MinTokens))
	f.IntVar(&o.SeqLen, "seq-len", calib.DefaultSeqLen, "tokens in a calibration sequence")
	f.Uint64Var(&o.Seed, "seed", 0, "which places of the text are taken")
	f.StringVar(&o.HeldOut, "held-out", "", "text `FILE` that the model will be evaluated on: warn if the calibration text has parts of it")
}

// reads lists the text files.
func (o *calibOptions) reads() []reading {
	var list []reading
	for _, path := range o.Calib {
		list = append(list, reading{path, "calibration text"})
	}
	return append(list, reading{o.HeldOut, "the held-out text"})
}

// check checks what needs no file.
func (o *calibOptions) check() error {
	switch {
	case o.cmd.Flags().Changed("calib-tokens") && o.CalibTokens < 1:
		return usagef("--calib-tokens %d: need 1 or more", o.CalibTokens)
	case o.HeldOut != "" && len(o.Calib) == 0:
		return usagef("--held-out is compared to calibration text: give some with --calib FILE")
	case o.SeqLen < 2:
		return usagef("--seq-len %d: need 2 or more", o.SeqLen)
	}
	return nil
}

// fit makes the number of tokens that is taken by default that of the model.
func (o *calibOptions) fit(src model.Source) {
	var weights int64
	for _, t := range src.Tensors() {
		weights += int64(t.Elements())
	}
	o.enough = calib.Enough(weights)
}

// atMost is the most tokens that a sample will have.
func (o *calibOptions) atMost() int { return cmp.Or(o.CalibTokens, o.enough) }

// sample reads the calibration text with src's tokenizer and chat template, with so many more tokens to be held out, and
// prints the set's warnings.
func (o *calibOptions) sample(a *app, src pipeline.Source, heldOut int) (*calib.Set, error) {
	tok, err := a.newTokenizer(src.Name(), src)
	if err != nil {
		return nil, err
	}
	set, err := calib.Sample(o.Calib, tok, calib.Options{
		Tokens: o.CalibTokens, Enough: o.enough, SeqLen: o.SeqLen, Seed: o.Seed, HeldOut: heldOut, Chat: calib.NewChatTemplate(src),
	})
	if err != nil {
		return nil, err
	}
	a.warnContext(src, o.SeqLen)
	if o.HeldOut != "" {
		content, err := text.ReadUTF8(o.HeldOut)
		if err != nil {
			return nil, err
		}
		set.WarnOverlap(o.HeldOut, tok.Encode(content, tokenizer.EncodeOptions{}))
	}
	for _, w := range set.Warnings {
		a.warn("%s", w)
	}
	return set, nil
}
