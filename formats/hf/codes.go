package hf

import (
	"fmt"
	"slices"

	"github.com/llmq/llmq/formats/ggml"
)

// Factors are what the weights that Codes returns have to be multiplied by: one, or one for each expert; nil for a tensor that the
// checkpoint does not store as NVFP4, or whose values change on their way into a GGUF.
func (c *Checkpoint) Factors(name string) []float32 {
	i, ok := c.index[name]
	if !ok || len(c.sources[i].Parts) == 0 {
		return nil
	}
	s := &c.sources[i]
	if coded, err := newSource(c.coded(), s.Tensor); err != nil || coded.info.Type != ggml.NVFP4 {
		return nil
	}
	var all []float32
	for _, p := range s.Parts {
		all = append(all, c.weights.Factors(p.Name)...)
	}
	same := func(v float32) bool { return v == all[0] }
	switch {
	case !slices.ContainsFunc(all, func(v float32) bool { return !same(v) }):
		return all[:1]
	case len(s.info.Shape) == 3 && len(all) == s.info.Shape[0] && (len(s.Parts) == 1 || len(s.Parts) == len(all)):
		return all
	}
	return nil // parts of one matrix, each with a factor of its own
}

// Codes returns rows [lo,hi) of a tensor that has Factors, in NVFP4, with the checkpoint's codes and scales.
func (c *Checkpoint) Codes(name string, lo, hi int) (*ggml.Tensor, error) {
	i, ok := c.index[name]
	if !ok || c.Factors(name) == nil {
		return nil, fmt.Errorf("hf: %s: no tensor %q of codes", c.dir, name)
	}
	s, err := newSource(c.coded(), c.sources[i].Tensor)
	if err != nil {
		return nil, fmt.Errorf("hf: %s: %w", c.dir, err)
	}
	data, err := s.rows(c.coded(), lo, hi)
	if err != nil {
		return nil, fmt.Errorf("hf: %s: %w", c.dir, err)
	}
	s.reads(c.weights, lo, hi, c.weights.Release)
	return &ggml.Tensor{Info: s.info, Data: data}, nil
}

// coded are the weights, those that have factors as codes.
func (c *Checkpoint) coded() stored { return stored{c.weights.Checkpoint, true} }
