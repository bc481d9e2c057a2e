package arch

import (
	"slices"

	"github.com/llmq/llmq/model"
)

// Layers with and without a sliding window.

// windowOf is the attention window of layer i.
func (h *hyper) windowOf(i int) int {
	if h.windowed != nil && !h.windowed[i] {
		return 0
	}
	return h.window
}

// windowedLayers says which of n layers have a window: by layer_types or, without it, all but each period-th.
func (c *Conversion) windowedLayers(n, period int) []bool {
	types := c.LayerTypes(n)
	windowed := periodic(n, period)
	for i := range types[:min(n, len(types))] {
		windowed[i] = types[i] == "sliding_attention"
	}
	return windowed
}

// setPattern says which layers have a window, unless readers take that for granted: all but each period-th.
func (c *Conversion) setPattern(windowed []bool, period int) {
	for i := range windowed {
		if windowed[i] != ((i+1)%period != 0) {
			c.Set("attention.sliding_window_pattern", windowed)
			return
		}
	}
}

// periodic is which of n layers have a window where every period-th has none.
func periodic(n, period int) []bool {
	windowed := make([]bool, n)
	for i := range windowed {
		windowed[i] = (i+1)%max(period, 1) != 0
	}
	return windowed
}

// readWindowed reads which of n layers have a window: of a list, or of a number of which no layer that it divides has one,
// 0 meaning that all have; nil if the metadata do not say.
func readWindowed(k *model.Keys, n int) []bool {
	const key = "attention.sliding_window_pattern"
	if !k.IsInt(key) {
		return k.Bools(key, n)
	}
	period := k.Int(key, 0, 0, model.MaxLayers)
	if period == 0 {
		period = n + 1
	}
	return periodic(n, period)
}

// readPattern completes which layers have a window: all but each period-th, where the metadata do not say.
func (h *hyper) readPattern(period int) {
	if h.windowed == nil && h.window > 0 {
		h.windowed = periodic(h.layers, period)
	}
}

// setWindow sets a sliding window and, unless all layers have it, which do.
func (c *Conversion) setWindow(window int, windowed []bool) {
	all, any := true, false
	for _, w := range windowed {
		all, any = all && w, any || w
	}
	if window == 0 || !any {
		return
	}
	c.SetInt("attention.sliding_window", window)
	if !all {
		c.Set("attention.sliding_window_pattern", windowed)
	}
}

// noteWindow warns of a window that the metadata have and llama.cpp does without.
func (c *Conversion) noteWindow() {
	number := func(key string) uint32 {
		v, _ := c.Metadata.Get(c.Family.Name + "." + key)
		n, _ := v.(uint32)
		return n
	}
	window := number("attention.sliding_window")
	if c.Family.Unwindowed && window > 0 && window < number("context_length") {
		c.Warn("%s: sliding_window: is %d; llama.cpp attends to all tokens in %s models, and differs in longer contexts", c.Config.File,
			window, c.Family.Name)
	}
}

// windowFrom reads a sliding window and which layers have it: those that layer_types names or, without it, those from
// max_window_layers on, where use_sliding_window is true.
func (c *Conversion) windowFrom(r *Config) (window int, windowed []bool) {
	o := c.Config
	use := o.Bool("use_sliding_window", false)
	first := o.Int("max_window_layers", 28, 0, maxLayers)
	types := c.LayerTypes(r.Layers)
	if !use || o.Present("sliding_window") && !o.Has("sliding_window") {
		if slices.Contains(types, "sliding_attention") {
			o.Fail("layer_types", "has sliding_attention, but there is no window: see use_sliding_window and sliding_window")
		}
		return 0, nil
	}
	window = o.Int("sliding_window", 4096, 1, maxContext)
	windowed = make([]bool, r.Layers)
	for i := range windowed {
		if windowed[i] = i >= first; types != nil {
			windowed[i] = types[i] == "sliding_attention"
		}
	}
	return window, windowed
}
