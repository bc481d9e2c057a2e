package arch

import (
	"math"

	"github.com/llmq/llmq/model"
)

// readSections reads which pairs turn with a token's time, height and width. They take turns, pair j having j mod 3, until
// one has as many as rope.dimension_sections gives it. All three are the position where tokens are text. What is left over
// GGUF readers do not turn: with sections of 4, 2, 2, the eighth pair.
func (h *hyper) readSections(k *model.Keys) {
	const key = "rope.dimension_sections"
	s := k.Ints(key, 4, -1, 0, model.MaxWidth)
	all := s[0] + s[1] + s[2] + s[3]
	if k.Err() == nil && (all == 0 || all > h.headDim) {
		k.Fail(key, "are %v, want some pairs of a head of %d", s, h.headDim)
	}
	if k.Err() != nil {
		return
	}
	factors, left := make([]float32, h.rope.Dims/2), false
	for j := range factors {
		if factors[j] = 1; j%all >= 3*s[j%all%3] {
			factors[j], left = float32(math.Inf(1)), true // divides the frequency
		}
	}
	if left {
		h.rope.Factors = factors
	}
}

// setSections sets what readers of M-RoPE demand where config.json does not say it: how many pairs are time's, height's and
// width's, absent, those of the class.
func (c *Conversion) setSections(e *rope, absent []int32) {
	if !e.params.Has("mrope_section") && !e.scaling.Has("mrope_section") {
		c.Set("rope.dimension_sections", absent)
	}
}
