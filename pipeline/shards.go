package pipeline

import (
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/kernels/gemm"
	"github.com/llmq/llmq/quant"
)

// Shards is how many parts the calibration text is cut into, each of whole batches: fewer if there are fewer of those. Sums over
// its tokens are made for each shard, and the shards' added in order. So they are the same bytes whoever makes them, one
// machine or several that take some shards each.
//
// Statistics that are large are summed in steps: those of neighbouring shards, a bundle; those of neighbouring bundles, a half; and then both
// halves. One of two machines that has a half's shards puts out one sum of them, of which the other makes the total, and one of four a
// bundle's. Where the sums of a bundle would take too much memory beside a half's, shards are added to their half.
//
// Those of a single expert are not: its tokens are few, and a machine takes an expert as a whole.
const (
	Shards       = 16
	shardBundles = 4
	shardHalves  = 2
)

// Statistics of inputs of so many features are summed in halves, and of no more than mostBundledFeatures in bundles. This decides a run's last
// bits. Tests take fewer.
var leastHalvedFeatures, mostBundledFeatures = 1450, 8192

// halved says whether statistics of inputs of so many features are summed in halves, and bundled whether these are of bundles.
func halved(in int) bool  { return in >= leastHalvedFeatures }
func bundled(in int) bool { return halved(in) && in <= mostBundledFeatures }

// ShardsMetadata records the shards in a file.
func ShardsMetadata() gguf.Metadata {
	return gguf.Metadata{{Key: "llmq.calibration.shards", Value: uint32(Shards)}}
}

// partOf is the part of item i, if n items are divided into so many parts of neighbours, or one each if they are fewer.
func partOf(i, n, parts int) int {
	if n <= parts {
		return i
	}
	return i * parts / n
}

// partRange are the items [lo,hi) of a part: partOf's inverse.
func partRange(part, n, parts int) (lo, hi int) {
	if n <= parts {
		return part, part + 1
	}
	return (part*n + parts - 1) / parts, ((part+1)*n + parts - 1) / parts
}

// shardOf is the shard of batch i of n.
func shardOf(i, n int) int { return partOf(i, n, Shards) }

// shardCount is the number of shards of n batches.
func shardCount(n int) int { return min(n, Shards) }

// shardBatches are the batches [lo,hi) of a shard of n batches: shardOf's inverse.
func shardBatches(shard, n int) (lo, hi int) { return partRange(shard, n, Shards) }

// bundleOf is the bundle of a shard of n, and bundleShards are the shards [lo,hi) of a bundle.
func bundleOf(shard, n int) int { return partOf(shard, n, shardBundles) }

func bundleShards(bundle, n int) (lo, hi int) { return partRange(bundle, n, shardBundles) }

// bundleCount is the number of bundles of n shards.
func bundleCount(n int) int { return min(n, shardBundles) }

// halfOf is the half of a shard of n, halfShards are the shards [lo,hi) of a half, and halfCount is the number of halves of n shards: the
// bundles of each are neighbours.
func halfOf(shard, n int) int { return partOf(bundleOf(shard, n), bundleCount(n), shardHalves) }

func halfShards(half, n int) (lo, hi int) {
	first, last := partRange(half, bundleCount(n), shardHalves)
	lo, _ = bundleShards(first, n)
	_, hi = bundleShards(last-1, n)
	return lo, hi
}

func halfCount(n int) int { return min(n, shardHalves) }

// shardedStats are sums over the batches of a stream. Besides the sums they take room for those of one bundle, where there are some,
// and for those of one shard, unless that is a batch. The first half's wait in a file.
type shardedStats struct {
	shardOf  func(batch int) int
	bundleOf func(shard int) int // nil: a half is one bundle
	halfOf   func(shard int) int // nil: all are one half
	// sums are those of the bundles before the one that is being seen, or of the first one, bundle those of the shards of a later one, shard
	// those of a shard that does not begin a bundle; all of the half that is being seen.
	sums, bundle, shard *quant.Stats
	first               *waitingStats // of the first half; nil: that is being seen, or all are one
	dir                 string        // of its file
	// The shard that is being seen, its bundle and its half, the first shard of the bundle, and the first bundle of the half.
	at, atBundle, atHalf, begins, halfBegins int
	joinLater                                bool
}

// newShardedStats returns sums for the batches of s, of inputs with in features: into, which the caller joins, or empty ones, which may
// use a file in dir ("": the system's).
func (s *stream) newShardedStats(in int, into *quant.Stats, dir string) *shardedStats {
	if into != nil {
		return &shardedStats{shardOf: s.shardOf, sums: into, joinLater: true}
	}
	sums := quant.NewStats(in)
	sums.Apart = s.batchIsShard()
	all := &shardedStats{shardOf: s.shardOf, sums: sums, dir: dir}
	if s.partial {
		return all
	}
	shards := shardCount(s.x.Batches())
	if bundled(in) && shards > shardBundles {
		all.bundleOf = func(shard int) int { return bundleOf(shard, shards) }
	}
	if halved(in) {
		all.halfOf = func(shard int) int { return halfOf(shard, shards) }
	}
	return all
}

// batchIsShard says whether each batch of the stream is a shard.
func (s *stream) batchIsShard() bool {
	if s.partial {
		return s.x.Batches() == 1
	}
	return s.x.Batches() <= Shards
}

// of returns what batch i is to be added to. Batches come in order.
func (s *shardedStats) of(i int) (*quant.Stats, error) {
	at, bundle, half := s.shardOf(i), 0, 0
	if s.halfOf != nil {
		half = s.halfOf(at)
		bundle = half
	}
	if s.bundleOf != nil {
		bundle = s.bundleOf(at)
	}
	if at != s.at {
		s.endShard()
	}
	if bundle != s.atBundle {
		s.endBundle()
		s.begins = at
	}
	if half != s.atHalf {
		if err := s.endHalf(); err != nil {
			return nil, err
		}
		s.halfBegins = bundle
	}
	s.at, s.atBundle, s.atHalf = at, bundle, half
	into := &s.sums // the first bundle's sums are added to zeros: they are the half's
	if bundle > s.halfBegins {
		into = s.fresh(&s.bundle)
	}
	if at > s.begins && !s.sums.Apart { // the first shard's are the bundle's likewise
		into = s.fresh(&s.shard)
	}
	return *into, nil
}

// fresh gives to, if it is nil, empty statistics like the sums.
func (s *shardedStats) fresh(to **quant.Stats) **quant.Stats {
	if *to == nil {
		*to = quant.NewStats(s.sums.H.Rows)
		(*to).Apart = s.sums.Apart
	}
	return to
}

// endShard adds the shard to its bundle.
func (s *shardedStats) endShard() {
	if s.at == s.begins || s.sums.Apart {
		return
	}
	into := s.sums
	if s.atBundle > s.halfBegins {
		into = s.bundle
	}
	into.Add(s.shard)
	s.shard.Reset()
}

// endBundle adds the bundle to its half.
func (s *shardedStats) endBundle() {
	if s.atBundle > s.halfBegins {
		s.sums.Add(s.bundle)
		s.bundle.Reset()
	}
}

// endHalf has the first half wait.
func (s *shardedStats) endHalf() (err error) {
	s.first, err = waitStats(s.sums, s.dir)
	s.sums.Reset()
	return err
}

// all returns the sums over all batches. No more may follow.
func (s *shardedStats) all() (*quant.Stats, error) {
	s.endShard()
	s.endBundle()
	s.bundle, s.shard = nil, nil
	if s.first != nil {
		if err := s.first.addTo(s.sums); err != nil { // the second half and the first are the first and the second
			return nil, err
		}
		if !s.sums.Apart {
			gemm.Mirror(s.sums.H)
		}
	}
	if !s.joinLater {
		s.sums.Join()
	}
	return s.sums, nil
}

// close lets go of what waits, if the sums have not come to their end.
func (s *shardedStats) close() { s.first.close() }
