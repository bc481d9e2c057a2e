package int8outlier

import (
	"github.com/llmq/llmq/tensor"
)

// Collector finds the outlier features of many inputs, as a walk through a model shows them one after the other. The zero
// value is for the paper's Criteria.
type Collector struct {
	Criteria Criteria

	shares map[string]string   // by input: the features that it has in common with others, or its own name
	counts map[string][]Counts // by what they share: one for each input that was seen
	at     map[string]int      // by input: its place among those
}

// Observe adds values of an input, positions×features. shares names the features that it has in common with the inputs of
// other layers, as hidden states have; "" if they are its own.
func (c *Collector) Observe(input, shares string, x *tensor.Matrix) {
	c.init()
	i, seen := c.at[input]
	if !seen {
		key := "shared " + shares
		if shares == "" {
			key = input
		}
		i = len(c.counts[key])
		c.shares[input], c.at[input] = key, i
		c.counts[key] = append(c.counts[key], Counts{})
	}
	c.Criteria.Observe(&c.counts[c.shares[input]][i], x)
}

// Features returns, in ascending order, the outlier features of an input: none if it was not seen.
func (c *Collector) Features(input string) []int {
	return c.Criteria.Features(c.counts[c.shares[input]])
}

// Counts returns what was counted of an input, and by what name it shares its features. It must have been observed.
func (c *Collector) Counts(input string) (shares string, n Counts) {
	shares = c.shares[input]
	return shares, c.counts[shares][c.at[input]]
}

// Restore notes an input that was not observed here as another Collector's Counts has told of it.
func (c *Collector) Restore(input, shares string, n Counts) {
	c.init()
	c.shares[input], c.at[input] = shares, len(c.counts[shares])
	c.counts[shares] = append(c.counts[shares], n)
}

func (c *Collector) init() {
	if c.shares == nil {
		c.shares, c.counts, c.at = map[string]string{}, map[string][]Counts{}, map[string]int{}
	}
}
