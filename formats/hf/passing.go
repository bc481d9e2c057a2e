package hf

import (
	"github.com/llmq/llmq/formats/checkpoint"
	"github.com/llmq/llmq/model"
)

// passing is what is known of weights that go when they are spent.
type passing struct {
	check   func() error // Options.Check
	spent   map[string]bool
	readers map[string]int // of the folder's tensors: how many of the virtual GGUF's are made of them, and not spent
}

// Passes is model.Passing's.
func (c *Checkpoint) Passes() bool { return c.passing != nil }

// Here is model.Passing's.
func (c *Checkpoint) Here(name string) bool {
	here := true
	c.eachPart(name, func(name string, lo, hi int) { here = here && c.weights.There(name, lo, hi) })
	return here
}

// Places is model.Passing's.
func (c *Checkpoint) Places(name string) (places []model.Place) {
	c.eachPart(name, func(name string, first, last int) {
		c.weights.Places(name, first, last, func(file string, lo, hi int64) { places = append(places, model.Place{File: file, Lo: lo, Hi: hi}) })
	})
	return places
}

// Check is model.Passing's.
func (c *Checkpoint) Check() error {
	if c.passing == nil || c.passing.check == nil {
		return nil
	}
	return c.passing.check()
}

// Spend is model.Passing's. What several tensors are made of goes with the last of them, as a whole. Some rows of a tensor go by themselves
// where they are all that is read of the folder's rows.
func (c *Checkpoint) Spend(rows []model.Rows) error {
	p := c.passing
	if p == nil {
		return nil
	}
	if p.spent == nil {
		p.spent, p.readers = map[string]bool{}, map[string]int{}
		for i := range c.infos {
			for name := range c.madeOf(i) {
				p.readers[name]++
			}
		}
	}
	var drop []checkpoint.Rows
	for _, r := range rows {
		i, ok := c.index[r.Name]
		if !ok {
			continue
		}
		s := &c.sources[i]
		whole := r.Lo == 0 && r.Hi == s.info.Rows()
		first := whole && !p.spent[r.Name]
		if first {
			p.spent[r.Name] = true
		}
		for name := range c.madeOf(i) {
			if first {
				p.readers[name]--
			}
			switch others := p.readers[name]; {
			case whole && others == 0:
				info, _ := c.weights.Info(name)
				drop = append(drop, checkpoint.Rows{Name: name, Lo: 0, Hi: info.Rows()})
			case !whole && s.plain() && (others == 0 || others == 1 && !p.spent[r.Name]):
				drop = append(drop, checkpoint.Rows{Name: name, Lo: r.Lo, Hi: r.Hi})
			}
		}
	}
	return c.weights.Drop(drop)
}

// madeOf are the names of what the i-th tensor is made of.
func (c *Checkpoint) madeOf(i int) map[string]bool {
	names := map[string]bool{}
	s := &c.sources[i]
	s.reads(c.weights, 0, s.info.Rows(), func(name string, _, _ int) { names[name] = true })
	return names
}
