package scan

import "github.com/llmq/llmq/tensor"

// Decays is how much a function depends on the decays of a state within a chunk of tokens: with G_t the sum up to token t of the
// logarithms of the decays, it changes by
//
//	Σ_{s<t} Pairs_ts·δ(G_t−G_s) + Σ_t Reads_t·δG_t + Σ_s Writes_s·δ(G_last−G_s) + Through·δG_last.
type Decays struct {
	Pairs   *tensor.Matrix // tokens×tokens, below the diagonal: what a token takes from those before it
	Reads   []float64      // what a token takes from the state before the chunk
	Writes  []float64      // what a token gives to the state after it
	Through float64        // what the state before gives to the one after
}

// Back sets dg to the gradient at each logarithm. That of token r is in G_t−G_s for s < r ≤ t: the pairs' share is the sum over a
// rectangle. It is summed as that: from differences of sums over rows and columns, small gradients would not be told where decays
// are strong.
func (d *Decays) Back(dg []float64) {
	clear(dg)
	for t := range dg {
		var pairs float64 // of t with tokens up to s
		for s, v := range d.Pairs.Row(t)[:t] {
			pairs += float64(v)
			dg[s+1] += pairs
		}
	}
	reads := d.Through
	for t := len(dg) - 1; t >= 0; t-- {
		reads += d.Reads[t]
		dg[t] += reads
	}
	var writes float64
	for s, v := range d.Writes {
		dg[s] += writes
		writes += v
	}
}
