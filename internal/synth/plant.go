package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/formats/hf"
	"github.com/llmq/llmq/internal/testmodel"
	"github.com/llmq/llmq/pipeline"
)

// plant writes a checkpoint with outlier features as F32 GGUF, which is a checkpoint too.
func plant(folder, output string, o testmodel.Outliers) error {
	if output == "" {
		return errors.New("need -o")
	}
	src, err := hf.Open(folder, hf.Options{})
	if err != nil {
		return err
	}
	defer src.Close()
	planted, err := testmodel.Plant(src, o)
	if err != nil {
		return err
	}
	p, err := pipeline.NewPlan(planted, pipeline.Recipe{Method: pipeline.RTN, Type: ggml.F32})
	if err != nil {
		return err
	}
	rep, err := pipeline.Run(context.Background(), planted, p, output, pipeline.Options{})
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d bytes\n", rep.Output, rep.Bytes)
	return nil
}
