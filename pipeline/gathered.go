package pipeline

import (
	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// gatherShare is how many rows of H there are to one input that is gathered, and so how much smaller than H is what that takes.
const gatherShare = 32

// gathered are sums over inputs of which few come at a time, those of one expert. A product adds all of H, whose 7168² sums of
// DeepSeek-V3 are 206 MB, for however few inputs: so inputs wait until they are a gatherShare of H's rows, or flush is called.
type gathered struct {
	*quant.Stats
	x, lacks *tensor.Matrix // what waits: inputs, and what they lack; lacks is nil while nobody tells
	rows     int            // of them that are there
}

// Observe is quant.Stats.Observe, now or later.
func (g *gathered) Observe(x *tensor.Matrix) {
	most := x.Cols / gatherShare
	if g.rows+x.Rows > most {
		g.flush()
	}
	if x.Rows > most {
		g.Stats.Observe(x)
		return
	}
	if g.x == nil {
		g.x = tensor.New(most, x.Cols)
	}
	copyRows(g.x, g.rows, x)
	g.rows += x.Rows
}

// ObserveDrift is quant.Stats.ObserveDrift, for the inputs of the last Observe and for each of them or none.
func (g *gathered) ObserveDrift(drift, x *tensor.Matrix) {
	if g.rows == 0 {
		g.Stats.ObserveDrift(drift, x)
		return
	}
	if g.lacks == nil {
		g.lacks = tensor.New(g.x.Rows, g.x.Cols)
	}
	copyRows(g.lacks, g.rows-drift.Rows, drift)
}

// flush adds what waits to the sums.
func (g *gathered) flush() {
	if g.rows == 0 {
		return
	}
	x := g.x.View(0, g.rows, 0, g.x.Cols)
	g.Stats.Observe(x)
	if g.lacks != nil {
		g.Stats.ObserveDrift(g.lacks.View(0, g.rows, 0, g.x.Cols), x)
	}
	g.rows = 0
}

func copyRows(dst *tensor.Matrix, at int, src *tensor.Matrix) {
	for i := range src.Rows {
		copy(dst.Row(at+i), src.Row(i))
	}
}
