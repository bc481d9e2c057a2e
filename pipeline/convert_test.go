package pipeline

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/llmq/llmq/formats/ggml"
	"github.com/llmq/llmq/internal/testmodel"
)

// counted counts the tensors that are asked for.
type counted struct {
	*testmodel.Source
	n int
}

func (c *counted) Tensor(name string) (*ggml.Tensor, error) {
	c.n++
	return c.Source.Tensor(name)
}

// TestWriteFails: conversion ends with the first write that fails, not with the last tensor.
func TestWriteFails(t *testing.T) {
	src := &counted{Source: testmodel.New("llama").Source()}
	plan, err := NewPlan(src, Recipe{Method: RTN, Type: ggml.Q8_0})
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWriter(&task{ctx: t.Context(), src: src, plan: plan, opt: Options{Progress: silent{}}},
		filepath.Join(t.TempDir(), "out.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	w.file.Abort()
	src.n = 0
	if err := w.convertAll(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("error %v, want that the file is closed", err)
	}
	// Each write makes room for another only after it has failed.
	if most := pendingWrites + 2; src.n > most || len(plan.Tensors) <= most {
		t.Errorf("%d of %d tensors were read, want at most %d", src.n, len(plan.Tensors), most)
	}
}
