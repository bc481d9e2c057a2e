package pipeline

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/llmq/llmq/quant"
	"github.com/llmq/llmq/tensor"
)

// TestShardOf: shards are of batches that follow each other, none is empty, and they differ by one batch at most.
func TestShardOf(t *testing.T) {
	for _, n := range []int{1, 2, 15, 16, 17, 31, 100, 257} {
		for s := range shardCount(n) {
			for i, hi := shardBatches(s, n); i < hi; i++ {
				if shardOf(i, n) != s {
					t.Errorf("%d batches: batch %d is not of shard %d", n, i, s)
				}
			}
		}
		if lo, _ := shardBatches(0, n); lo != 0 {
			t.Errorf("%d batches: the first shard begins with batch %d", n, lo)
		}
		if _, hi := shardBatches(shardCount(n)-1, n); hi != n {
			t.Errorf("%d batches: the last shard ends before batch %d", n, hi)
		}
		count := make([]int, Shards)
		last := 0
		for i := range n {
			s := shardOf(i, n)
			if s < last || s > last+1 {
				t.Fatalf("%d batches: shard %d follows %d", n, s, last)
			}
			last = s
			count[s]++
		}
		count = count[:min(n, Shards)]
		if slices.Max(count)-slices.Min(count) > 1 || slices.Min(count) == 0 {
			t.Errorf("%d batches: shards of %v", n, count)
		}
	}
}

// TestShardedStats: the sums are, bit for bit, those that a machine for each shard would make, added in order, in bundles or all at once.
func TestShardedStats(t *testing.T) {
	for _, batches := range []int{3, 7, 16, 37} {
		for _, bundles := range []bool{false, true} {
			testShardedStats(t, batches, bundles)
		}
	}
}

func testShardedStats(t *testing.T, batches int, bundles bool) {
	const in, out = 24, 8
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(rows, cols int) *tensor.Matrix {
		m := tensor.New(rows, cols)
		for i := range m.Data {
			m.Data[i] = float32(rng.NormFloat64())
		}
		return m
	}
	sums := &shardedStats{shardOf: func(i int) int { return shardOf(i, batches) }, sums: quant.NewStats(in)}
	if bundles {
		sums.bundleOf = func(shard int) int { return bundleOf(shard, shardCount(batches)) }
	}
	sums.sums.Apart = batches <= Shards
	machines := make([]*quant.Stats, shardCount(batches))
	for i := range batches {
		x, drift, missing := random(9, in), random(9, in), random(9, out)
		m := &machines[shardOf(i, batches)]
		if *m == nil {
			*m = quant.NewStats(in)
		}
		for _, s := range []*quant.Stats{sums.of(i), *m} {
			s.Observe(x)
			s.ObserveDrift(drift, x)
			if i%2 == 0 || i < 20 {
				s.ObserveShortfall(missing, x)
			}
		}
	}
	got, want := sums.all(), machines[0]
	if bundles {
		want = nil
		for g := range bundleCount(len(machines)) {
			lo, hi := bundleShards(g, len(machines))
			for _, m := range machines[lo+1 : hi] {
				machines[lo].Add(m)
			}
			if want == nil {
				want = machines[lo]
			} else {
				want.Add(machines[lo])
			}
		}
	} else {
		for _, m := range machines[1:] {
			want.Add(m)
		}
	}
	if got.Tokens != 9*batches || want.Tokens != got.Tokens {
		t.Errorf("%d batches, bundles %v: %d tokens, the machines have %d", batches, bundles, got.Tokens, want.Tokens)
	}
	for name, m := range map[string][2]*tensor.Matrix{"H": {got.H, want.H}, "Drift": {got.Drift, want.Drift}, "Shortfall": {got.Shortfall, want.Shortfall}} {
		if !slices.Equal(m[0].Data, m[1].Data) {
			t.Errorf("%d batches, bundles %v: %s differs", batches, bundles, name)
		}
	}
	for name, m := range map[string][2][]float64{"Sum": {got.Sum, want.Sum}, "DriftSum": {got.DriftSum, want.DriftSum},
		"ShortfallSum": {got.ShortfallSum, want.ShortfallSum}} {
		if !slices.Equal(m[0], m[1]) {
			t.Errorf("%d batches, bundles %v: %s differs", batches, bundles, name)
		}
	}
}
