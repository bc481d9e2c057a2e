package int8outlier_test

import (
	"slices"
	"testing"

	"github.com/llmq/llmq/int8outlier"
	"github.com/llmq/llmq/tensor"
)

// TestCollector: inputs that share their features are judged together, others alone, and what was not seen not at all.
func TestCollector(t *testing.T) {
	var c int8outlier.Collector
	row := func(v ...float32) *tensor.Matrix { return tensor.FromSlice(1, len(v), v) }
	// Feature 0 is large in one of five layers, feature 1 in two.
	for i, x := range []*tensor.Matrix{row(9, 0, 0), row(0, 9, 0), row(0, -9, 0), row(0, 0, 0), row(0, 0, 0)} {
		for range 3 { // of the batches
			c.Observe(string(rune('a'+i)), "mlp_in", x)
		}
	}
	c.Observe("mlp_in", "", row(0, 0, 7, 7)) // an input of that name shares nothing with them
	for input, want := range map[string][]int{"a": {1}, "e": {1}, "mlp_in": {2, 3}, "unseen": nil} {
		if got := c.Features(input); !slices.Equal(got, want) {
			t.Errorf("%s has outlier features %v, want %v", input, got, want)
		}
	}
}
