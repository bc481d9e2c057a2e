package calib

import "math"

// Stability follows the ranges of one observer from batch to batch.
type Stability struct {
	First   int      // sequences in the first batch
	Changes []Change // one for each batch after it

	absMax, clip float64 // before
	features     []float32
}

// Change is how much the ranges after a batch differ from those before it, relative to the latter.
type Change struct {
	Sequences int     `json:"sequences"` // observed so far, this batch included
	AbsMax    float64 `json:"absmax"`    // of the largest magnitude
	Clip      float64 `json:"clip"`      // of the DefaultPercentile-th percentile of the magnitudes
	Features  float64 `json:"features"`  // mean over the features, of each one's largest magnitude
}

// What makes a range stable.
const (
	// StableChange is the most by which a range may still change.
	StableChange = 0.05
	// StableShare is the share of the sequences by which it must have settled.
	StableShare = 0.75
)

// Record notes o's ranges after a batch, with the number of sequences that o has seen so far.
func (s *Stability) Record(o *Observer, sequences int) {
	absMax, clip := o.Histogram.MinMax(), o.Histogram.Percentile(DefaultPercentile)
	if s.features == nil {
		s.First = sequences
		s.features = make([]float32, len(o.AbsMax))
	} else {
		c := Change{Sequences: sequences, AbsMax: relative(absMax, s.absMax), Clip: relative(clip, s.clip)}
		for i, v := range o.AbsMax {
			c.Features += relative(float64(v), float64(s.features[i])) / float64(len(s.features))
		}
		s.Changes = append(s.Changes, c)
	}
	s.absMax, s.clip = absMax, clip
	copy(s.features, o.AbsMax)
}

// relative is |now−before|/before; from zero to anything is a change of 1.
func relative(now, before float64) float64 {
	switch {
	case now == before:
		return 0
	case before == 0:
		return 1
	}
	return math.Abs(now-before) / before
}

// Settled returns the number of sequences after which neither the clipping range nor, in the mean, the features' ranges
// changed by more than StableChange. The largest magnitude of all is not asked for: a single token makes it. ok is false
// if that came after StableShare of the sequences, or there were fewer than four batches to tell.
func (s *Stability) Settled() (sequences int, ok bool) {
	const minChanges = 3
	sequences = s.First
	if len(s.Changes) == 0 {
		return sequences, false
	}
	for _, c := range s.Changes {
		if c.Clip > StableChange || c.Features > StableChange {
			sequences = c.Sequences
		}
	}
	total := s.Changes[len(s.Changes)-1].Sequences
	return sequences, len(s.Changes) >= minChanges && float64(sequences) <= StableShare*float64(total)
}
