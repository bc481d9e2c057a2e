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
// a group, and then the groups'. A machine that has a group's shards puts out one sum of them, not one of each.
//
// Those of a single expert are not: its tokens are few, and a machine takes an expert as a whole.
const (
	Shards      = 16
	shardGroups = 4
)

// mostGroupedFeatures: inputs of more features are summed in one step.
const mostGroupedFeatures = 8192

// grouped says whether statistics of inputs of so many features are summed in two steps.
func grouped(in int) bool { return in > statsPartFeatures && in <= mostGroupedFeatures }

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

// groupOf is the group of a shard of n, and groupShards are the shards [lo,hi) of a group.
func groupOf(shard, n int) int { return partOf(shard, n, shardGroups) }

func groupShards(group, n int) (lo, hi int) { return partRange(group, n, shardGroups) }

// groupCount is the number of groups of n shards.
func groupCount(n int) int { return min(n, shardGroups) }

// shardedStats are sums over the batches of a stream. Besides the sums they take room for those of one group, where there are groups,
// and for those of one shard, unless that is a batch.
type shardedStats struct {
	shardOf func(batch int) int
	groupOf func(shard int) int // nil: all are one group
	// sums are those of the groups before the one that is being seen, or of the first one, group those of the shards of a later one, shard
	// those of a shard that does not begin a group.
	sums, group, shard  *quant.Stats
	at, begins, atGroup int // the shard that is being seen, the first one of its group, and that
	goesOn              bool
}

// newShardedStats returns sums for the batches of s, of inputs with in features: into, which goes on being Apart, or empty ones.
func (s *stream) newShardedStats(in int, into *quant.Stats) *shardedStats {
	if into != nil {
		return &shardedStats{shardOf: s.shardOf, sums: into, goesOn: true}
	}
	sums := quant.NewStats(in)
	sums.Apart = s.batchIsShard()
	all := &shardedStats{shardOf: s.shardOf, sums: sums}
	if shards := shardCount(s.x.Batches()); !s.partial && grouped(in) {
		all.groupOf = func(shard int) int { return groupOf(shard, shards) }
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
	at, group := s.shardOf(i), 0
	if s.groupOf != nil {
		group = s.groupOf(at)
	}
	if at != s.at {
		s.endShard()
	}
	if group != s.atGroup {
		s.endGroup()
		s.begins = at
	}
	s.at, s.atGroup = at, group
	into := &s.sums // the first group's sums are added to zeros: they are the sums
	if group > 0 {
		into = s.fresh(&s.group)
	}
	if at > s.begins && !s.sums.Apart { // the first shard's are the group's likewise
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

// endShard adds the shard to its group.
func (s *shardedStats) endShard() {
	if s.at == s.begins || s.sums.Apart {
		return
	}
	into := s.sums
	if s.atGroup > 0 {
		into = s.group
	}
	into.Add(s.shard)
	s.shard.Reset()
}

// endGroup adds the group to the sums.
func (s *shardedStats) endGroup() {
	if s.atGroup > 0 {
		s.sums.Add(s.group)
		s.group.Reset()
	}
}

// all returns the sums over all batches. No more may follow.
func (s *shardedStats) all() *quant.Stats {
	s.endShard()
	s.endGroup()
	s.group, s.shard = nil, nil
	if !s.goesOn {
		s.sums.Join()
	}
	return s.sums
}
