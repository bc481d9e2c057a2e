package arch

import (
	"regexp"
	"strconv"
	"strings"
)

// Layers that predict further tokens (multi-token prediction; DeepSeek-V3, arXiv:2412.19437, section 2.2) are behind the
// model's own, and readers run them for speculative decoding alone. GGUF counts them as the last layers, with tensors
// called nextn beside those of a layer. They can be kept for the families for which llama.cpp's converter keeps them.

// MTP says which layers that predict further tokens are kept.
type MTP int

const (
	// AutoMTP keeps those that a class numbers as layers of the model, which every llama.cpp that has the family loads. Those
	// that it keeps apart, under mtp, the transformers library does not load, and llama.cpp only since it runs them.
	AutoMTP MTP = iota
	KeepMTP
	DropMTP
)

// nextnKey is the member of config.json that has their number in most classes.
const nextnKey = "num_nextn_predict_layers"

// nextn returns how many of the layers that predict further tokens are written: as many as config.json says, none if they
// are dropped or if the checkpoint has no layers behind the model's own.
func (c *Conversion) nextn(r *Config) int {
	n := c.Config.Int(nextnKey, 0, 0, maxLayers)
	if c.MTP == DropMTP {
		c.SkipLayers(r.Layers, n)
	}
	for _, name := range c.weights.Names() {
		if i, ok := layerOf(name); ok && i >= r.Layers && !c.used[name] {
			return n
		}
	}
	return 0
}

// setNextn sets that n layers behind the model's own predict further tokens.
func (c *Conversion) setNextn(r *Config, n int) {
	if n > 0 {
		c.SetInt("block_count", r.Layers+n)
	}
	if n > 0 || c.Config.Has(nextnKey) && c.MTP != DropMTP {
		c.SetInt("nextn_predict_layers", n)
	}
}

// nextn declares what a layer that predicts further tokens has beside a layer's tensors: the projection of an embedding
// and a hidden state, each behind its norm, and embeddings and head of its own if the checkpoint has them.
func (l *Layer) nextn(r *Config) {
	l.Linear("nextn.eh_proj", "eh_proj", r.Dim, 2*r.Dim, false)
	l.Norm("nextn.enorm", "enorm", r.Dim)
	l.Norm("nextn.hnorm", "hnorm", r.Dim)
	if l.Has("embed_tokens.weight") {
		l.Linear("nextn.embed_tokens", "embed_tokens", r.Vocab, r.Dim, false)
	}
	if l.Has("shared_head.head.weight") {
		l.Linear("nextn.shared_head_head", "shared_head.head", r.Vocab, r.Dim, false)
	}
	if l.Has("shared_head.norm.weight") {
		l.Norm("nextn.shared_head_norm", "shared_head.norm", r.Dim)
	}
}

// layerOf returns the number of the layer in a tensor's name.
func layerOf(name string) (layer int, ok bool) {
	_, rest, _ := strings.Cut(name, "layers.")
	number, _, _ := strings.Cut(rest, ".")
	layer, err := strconv.Atoi(number)
	return layer, err == nil
}

// SkipLayers leaves out count layers from first on: those that predict further tokens, if the checkpoint has them.
func (c *Conversion) SkipLayers(first, count int) {
	skipped := 0
	for _, name := range c.weights.Names() {
		if i, ok := layerOf(name); ok && i >= first && i-first < count {
			c.used[name] = true
			skipped++
		}
	}
	if skipped > 0 {
		c.Warn("%d tensors of layers from %d on are left out: they predict further tokens", skipped, first)
	}
}

// mtp matches the tensors of layers that predict further tokens, where they are numbered on their own.
var mtp = regexp.MustCompile(`^(model\.)?mtp\.(layers\.(\d+)\.)?`)

// mtpLayers is how many layers the checkpoint has that predict further tokens and are numbered on their own; none, unless
// they are to be kept.
func (c *Conversion) mtpLayers() int {
	if c.MTP != KeepMTP {
		c.skipMTP()
		return 0
	}
	n := 0
	for _, name := range c.weights.Names() {
		if m := mtp.FindStringSubmatch(name); m != nil {
			if i, err := strconv.Atoi(m[3]); err == nil && i < maxLayers {
				n = max(n, i+1)
			}
		}
	}
	return n
}

// skipMTP leaves out the tensors of layers that predict further tokens and are numbered on their own.
func (c *Conversion) skipMTP() {
	skipped := 0
	for _, name := range c.weights.Names() {
		if mtp.MatchString(name) {
			c.used[name] = true
			skipped++
		}
	}
	if skipped > 0 {
		hint := " (--mtp keep)"
		if c.MTP == KeepMTP {
			hint = ", and llama.cpp does not take them as they are here"
		}
		c.Warn("%d tensors of mtp are left out: they predict further tokens%s", skipped, hint)
	}
}
