package pipeline

import (
	"github.com/llmq/llmq/formats/gguf"
	"github.com/llmq/llmq/quant"
)

// Shards is how many parts the calibration text is cut into, each of whole batches: fewer if there are fewer of those. Sums over
// its tokens are made for each shard, and the shards' added in order. So they are the same bytes whoever makes them, one
// machine or several that take some shards each.
//
// Those of a single expert are not: its tokens are few, and a machine takes an expert as a whole.
const Shards = 16

// ShardsMetadata records the shards in a file.
func ShardsMetadata() gguf.Metadata {
	return gguf.Metadata{{Key: "llmq.calibration.shards", Value: uint32(Shards)}}
}

// shardOf is the shard of batch i of n.
func shardOf(i, n int) int {
	if n <= Shards {
		return i
	}
	return i * Shards / n
}

// shardCount is the number of shards of n batches.
func shardCount(n int) int { return min(n, Shards) }

// shardBatches are the batches [lo,hi) of a shard of n batches: shardOf's inverse.
func shardBatches(shard, n int) (lo, hi int) {
	if n <= Shards {
		return shard, shard + 1
	}
	return (shard*n + Shards - 1) / Shards, ((shard+1)*n + Shards - 1) / Shards
}

// shardedStats are sums over the batches of a stream. Besides the sums they take room for those of one shard, unless that is a batch.
type shardedStats struct {
	shardOf     func(batch int) int
	sums, shard *quant.Stats
	at          int // the shard that is being seen
}

// newShardedStats returns empty sums for the batches of s.
func (s *stream) newShardedStats(in int) *shardedStats {
	sums := quant.NewStats(in)
	sums.Apart = s.batchIsShard()
	return &shardedStats{shardOf: s.shardOf, sums: sums}
}

// batchIsShard says whether each batch of the stream is a shard.
func (s *stream) batchIsShard() bool { return !s.partial && s.x.Batches() <= Shards }

// of returns what batch i is to be added to. Batches come in order.
func (s *shardedStats) of(i int) *quant.Stats {
	at := s.shardOf(i)
	if at == 0 || s.sums.Apart {
		return s.sums // the first shard's sums are added to zeros: they are the sums
	}
	switch {
	case s.shard == nil:
		s.shard = quant.NewStats(s.sums.H.Rows)
	case at != s.at:
		s.sums.Add(s.shard)
		s.shard.Reset()
	}
	s.at = at
	return s.shard
}

// all returns the sums over all batches. No more may follow.
func (s *shardedStats) all() *quant.Stats {
	if s.shard != nil {
		s.sums.Add(s.shard)
		s.shard = nil
	}
	s.sums.Join()
	return s.sums
}
