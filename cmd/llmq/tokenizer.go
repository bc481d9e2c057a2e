package main

import (
	"fmt"

	"github.com/llmq/llmq/pipeline"
	"github.com/llmq/llmq/tokenizer"
)

// newTokenizer builds the tokenizer of an open model and warns of what is doubtful about it.
func (a *app) newTokenizer(path string, src pipeline.Source) (*tokenizer.Tokenizer, error) {
	tok, err := tokenizer.New(src)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for _, w := range tok.Warnings() {
		fmt.Fprintf(a.stderr, "llmq: warning: %s: %s\n", path, w)
	}
	return tok, nil
}
