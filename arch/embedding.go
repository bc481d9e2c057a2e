package arch

import (
	"math"

	"github.com/llmq/llmq/model"
)

// tiedOutput refuses output weights that are not the embeddings, for architectures whose readers take those.
func (c *Conversion) tiedOutput(r *Config) {
	head, stored := c.find(headName)
	if !stored {
		return
	}
	c.used[head] = true
	if embed := c.embedding(); head != embed && !c.weights.Equal(head, embed) {
		c.fail("tensor %q is not the embeddings, which GGUF readers take for it in %s models", head, c.Family.Name)
	}
}

// embedScaled gives a model embeddings times √D, and caps its logits.
func (h *hyper) embedScaled(spec *model.Spec, softcap float32) *model.Spec {
	spec.Outer = func(b *model.Loader) model.Ends {
		return model.Ends{EmbedScale: float32(math.Sqrt(float64(h.dim))), Norm: h.norm(b, "output_norm"), Softcap: softcap}
	}
	return spec
}
