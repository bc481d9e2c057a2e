package pipeline

import (
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/quant"
)

// Shards is how many parts the calibration text is cut into, each of whole batches: fewer if there are fewer of those. Sums over
// its tokens are made for each shard, and the shards' added in order. So they are the same bytes whoever makes them, one
// machine or several that take some shards each.
//
// Statistics that are large, but not too large for another set of them in memory, are summed in two steps: those of neighbouring shards,
// a bundle, and then the bundles'. A machine that has a bundle's shards puts out one sum of them, not one of each.
//
// Those of a single expert are not: its tokens are few, and a machine takes an expert as a whole.
const (
	Shards       = 16
	shardBundles = 4
)

// Statistics of inputs of so many features are summed in two steps. This decides a run's last bits. Tests take fewer.
var leastBundledFeatures = 1450

const mostBundledFeatures = 8192

// bundled says whether statistics of inputs of so many features are summed in two steps.
func bundled(in int) bool { return in >= leastBundledFeatures && in <= mostBundledFeatures }

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

// shardedStats are sums over the batches of a stream. Besides the sums they take room for those of one bundle, where there are some,
// and for those of one shard, unless that is a batch.
type shardedStats struct {
	shardOf  func(batch int) int
	bundleOf func(shard int) int // nil: all are one bundle
	// sums are those of the bundles before the one that is being seen, or of the first one, bundle those of the shards of a later one, shard
	// those of a shard that does not begin a bundle.
	sums, bundle, shard  *quant.Stats
	at, begins, atBundle int // the shard that is being seen, the first one of its bundle, and that
	joinLater            bool
}

// newShardedStats returns sums for the batches of s, of inputs with in features: into, which the caller joins, or empty ones.
func (s *stream) newShardedStats(in int, into *quant.Stats) *shardedStats {
	if into != nil {
		return &shardedStats{shardOf: s.shardOf, sums: into, joinLater: true}
	}
	sums := quant.NewStats(in)
	sums.Apart = s.batchIsShard()
	all := &shardedStats{shardOf: s.shardOf, sums: sums}
	if shards := shardCount(s.x.Batches()); !s.partial && bundled(in) && shards > shardBundles {
		all.bundleOf = func(shard int) int { return bundleOf(shard, shards) }
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
func (s *shardedStats) of(i int) *quant.Stats {
	at, bundle := s.shardOf(i), 0
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
	s.at, s.atBundle = at, bundle
	into := &s.sums // the first bundle's sums are added to zeros: they are the sums
	if bundle > 0 {
		into = s.fresh(&s.bundle)
	}
	if at > s.begins && !s.sums.Apart { // the first shard's are the bundle's likewise
		into = s.fresh(&s.shard)
	}
	return *into
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
	if s.atBundle > 0 {
		into = s.bundle
	}
	into.Add(s.shard)
	s.shard.Reset()
}

// endBundle adds the bundle to the sums.
func (s *shardedStats) endBundle() {
	if s.atBundle > 0 {
		s.sums.Add(s.bundle)
		s.bundle.Reset()
	}
}

// all returns the sums over all batches. No more may follow.
func (s *shardedStats) all() *quant.Stats {
	s.endShard()
	s.endBundle()
	s.bundle, s.shard = nil, nil
	if !s.joinLater {
		s.sums.Join()
	}
	return s.sums
}
