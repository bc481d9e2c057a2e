package int8outlier

import (
	"math"

	"github.com/llmq/llmq/tensor"
)

// Criteria say which features are outliers. The zero value is the paper's (section 4): a feature is one where a
// magnitude of at least 6 is found in at least 25% of the layers and at 6% of the positions.
type Criteria struct {
	// Magnitude is the least one of an outlier. 0: 6. With +Inf no feature is an outlier.
	Magnitude float64
	// Layers is the least share of the layers in which the feature has an outlier. 0: 0.25.
	Layers float64
	// Positions is the least share of the positions, over all layers, at which the feature is an outlier. 0: 0.06.
	Positions float64
}

// The paper's criteria.
const (
	DefaultMagnitude = 6.0
	DefaultLayers    = 0.25
	DefaultPositions = 0.06
)

func (c Criteria) withDefaults() Criteria {
	set := func(v *float64, to float64) {
		if *v == 0 {
			*v = to
		}
	}
	set(&c.Magnitude, DefaultMagnitude)
	set(&c.Layers, DefaultLayers)
	set(&c.Positions, DefaultPositions)
	return c
}

// Counts is how often each feature of one layer's hidden states reached the magnitude.
type Counts struct {
	Positions int
	Outliers  []int // by feature
}

// Observe adds hidden states x, positions×features.
func (c Criteria) Observe(n *Counts, x *tensor.Matrix) {
	if n.Outliers == nil {
		n.Outliers = make([]int, x.Cols)
	}
	least := c.withDefaults().Magnitude
	n.Positions += x.Rows
	for r := range x.Rows {
		for j, v := range x.Row(r) {
			if math.Abs(float64(v)) >= least {
				n.Outliers[j]++
			}
		}
	}
}

// Features returns, in ascending order, the outlier features of layers whose hidden states have the same features. For
// an input that no other layer shares, such as ffn_down's, that is one layer.
func (c Criteria) Features(layers []Counts) []int {
	c = c.withDefaults()
	if len(layers) == 0 {
		return nil
	}
	var features []int
	for j := range layers[0].Outliers {
		in, outliers, positions := 0, 0, 0
		for _, n := range layers {
			positions += n.Positions
			if n.Outliers[j] > 0 {
				in++
				outliers += n.Outliers[j]
			}
		}
		if in > 0 && float64(in) >= c.Layers*float64(len(layers)) && float64(outliers) >= c.Positions*float64(positions) {
			features = append(features, j)
		}
	}
	return features
}
