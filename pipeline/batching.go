package pipeline

import (
	"github.com/llmq/llmq/internal/states"
	"github.com/llmq/llmq/model"
)

// batching divides sequences into batches, as package states has them: the sequences at which batches begin and, last, the one at which the last
// ends. Whoever takes a text, or some batches of it, goes by the same division, which the number of sequences, their length and the model decide.
type batching []int

// leastEven is how few tokens a batch may have for batches to be as many as suit several machines: a product of fewer packs its weights for
// too little. Tests take fewer.
var leastEven = 1024

// textBatches are those in which so many sequences pass through a stage of the model.
func textBatches(m *model.Model, seqs, seqLen int) batching { return evenly(seqs, batchOf(m), seqLen) }

// evenly divides sequences into batches of at most so many tokens, or of one sequence that is longer. Batches differ by one sequence at most,
// and where machines have as many batches each, so do their texts.
func evenly(seqs, tokens, seqLen int) batching {
	return states.Evenly(seqs, evenCount(seqs, max(1, tokens/seqLen), (leastEven+seqLen-1)/seqLen))
}

// evenCount is how many batches n items are divided into, of at most most each. Fewer batches than shards are made as many as bundles or a
// multiple of that, so that machines which take some each have about the same to do: but no more than there would be of least.
func evenCount(n, most, least int) int {
	fewest := (n + most - 1) / most
	if fewest >= Shards {
		return fewest
	}
	batches := max(1, (fewest+shardBundles-1)/shardBundles) * shardBundles
	if least = min(most, least); n/batches < least {
		return max(fewest, n/least)
	}
	return batches
}

func (p batching) batches() int { return len(p) - 1 }

// seqs is the number of sequences.
func (p batching) seqs() int { return p[p.batches()] - p[0] }

// largest is the most sequences of a batch.
func (p batching) largest() int { return states.Largest(p) }

// sequences returns those of a batch.
func (p batching) sequences(batch int) (lo, hi int) { return p[batch], p[batch+1] }

// part divides the sequences of the batches [first,last) alone.
func (p batching) part(first, last int) batching { return p[first : last+1] }

// heldFrom returns how many sequences of a batch come before those that are held out, its last: one of heldOutEvery of all, the last one of fewer.
func (p batching) heldFrom(batch int) int {
	lo, hi := p.sequences(batch)
	every := min(heldOutEvery, p.seqs())
	return hi - lo - (hi/every - lo/every)
}

// Gradients' sums over batches are made for either half of them, and then added: so a machine of two that has a half's batches puts out one sum
// of them.

// halves is the number of halves, one if there is one batch.
func (p batching) halves() int { return min(p.batches(), shardHalves) }

// half returns the batches of a half.
func (p batching) half(half int) (first, last int) { return partRange(half, p.batches(), shardHalves) }

// halfOf is the half of a batch.
func (p batching) halfOf(batch int) int { return partOf(batch, p.batches(), shardHalves) }

// span is of batches.
type span struct{ first, last int }

// spans are of batches whose sums are in a work folder at a time, all of them or some of a half.
func (p batching) spans() (spans []span) {
	if n := p.batches(); n <= gradientsTogether {
		return []span{{0, n}}
	}
	for half := range p.halves() {
		first, last := p.half(half)
		n := last - first
		parts := (n + gradientsTogether - 1) / gradientsTogether
		for part := range parts {
			lo, hi := partRange(part, n, parts)
			spans = append(spans, span{first + lo, first + hi})
		}
	}
	return spans
}
