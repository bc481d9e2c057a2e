package pipeline

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llmq/llmq/internal/states"
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

// TestHalfOf: halves are of whole bundles that follow each other, as many in each.
func TestHalfOf(t *testing.T) {
	for n := 1; n <= Shards; n++ {
		at := 0
		for half := range halfCount(n) {
			lo, hi := halfShards(half, n)
			if lo != at || hi <= lo {
				t.Errorf("%d shards: half %d is [%d,%d), behind %d", n, half, lo, hi, at)
			}
			for shard := lo; shard < hi; shard++ {
				if halfOf(shard, n) != half {
					t.Errorf("%d shards: shard %d is not of half %d", n, shard, half)
				}
			}
			if lo > 0 && bundleOf(lo, n) == bundleOf(lo-1, n) {
				t.Errorf("%d shards: half %d begins amid a bundle", n, half)
			}
			at = hi
		}
		if at != n {
			t.Errorf("%d shards: the halves have %d", n, at)
		}
	}
}

// TestShardedStats: the sums are, bit for bit, those that a machine for each shard would make, added in order: all at once, in halves, or these in
// bundles.
func TestShardedStats(t *testing.T) {
	for _, batches := range []int{1, 2, 3, 7, 16, 37} {
		for steps := range 3 {
			testShardedStats(t, batches, steps > 0, steps > 1)
		}
	}
}

func testShardedStats(t *testing.T, batches int, halves, bundles bool) {
	const in, out = 24, 8
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(rows, cols int) *tensor.Matrix {
		m := tensor.New(rows, cols)
		for i := range m.Data {
			m.Data[i] = float32(rng.NormFloat64())
		}
		return m
	}
	sums := &shardedStats{shardOf: func(i int) int { return shardOf(i, batches) }, sums: quant.NewStats(in), dir: t.TempDir()}
	defer sums.close()
	if halves {
		sums.halfOf = func(shard int) int { return halfOf(shard, shardCount(batches)) }
	}
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
		of, err := sums.of(i)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []*quant.Stats{of, *m} {
			s.Observe(x)
			s.ObserveDrift(drift, x)
			if i%2 == 0 || i < 20 {
				s.ObserveShortfall(missing, x)
			}
		}
	}
	got, err := sums.all()
	if err != nil {
		t.Fatal(err)
	}
	add := func(all []*quant.Stats, parts int, of func(i int) int) []*quant.Stats {
		sums := make([]*quant.Stats, parts)
		for i, s := range all {
			if sum := sums[of(i)]; sum != nil {
				sum.Add(s)
			} else {
				sums[of(i)] = s
			}
		}
		return sums
	}
	n := len(machines)
	switch {
	case bundles:
		machines = add(machines, bundleCount(n), func(i int) int { return bundleOf(i, n) })
		machines = add(machines, halfCount(n), func(i int) int { return partOf(i, bundleCount(n), shardHalves) })
	case halves:
		machines = add(machines, halfCount(n), func(i int) int { return halfOf(i, n) })
	}
	want := add(machines, 1, func(int) int { return 0 })[0]
	if got.Tokens != 9*batches || want.Tokens != got.Tokens {
		t.Errorf("%d batches, halves %v, bundles %v: %d tokens, the machines have %d", batches, halves, bundles, got.Tokens, want.Tokens)
	}
	for name, m := range map[string][2]*tensor.Matrix{"H": {got.H, want.H}, "Drift": {got.Drift, want.Drift}, "Shortfall": {got.Shortfall, want.Shortfall}} {
		if !slices.Equal(m[0].Data, m[1].Data) {
			t.Errorf("%d batches, halves %v, bundles %v: %s differs", batches, halves, bundles, name)
		}
	}
	for name, m := range map[string][2][]float64{"Sum": {got.Sum, want.Sum}, "DriftSum": {got.DriftSum, want.DriftSum},
		"ShortfallSum": {got.ShortfallSum, want.ShortfallSum}} {
		if !slices.Equal(m[0], m[1]) {
			t.Errorf("%d batches, halves %v, bundles %v: %s differs", batches, halves, bundles, name)
		}
	}
}

// TestEvenly: batches are no larger than they may be, and where there are fewer than shards, machines can have as many each: they are as
// many as bundles or a multiple, or as near to that as whole sequences and the least size allow. All have about the same size.
func TestEvenly(t *testing.T) {
	defer func(n int) { leastEven = n }(leastEven)
	for most := 1; most <= 12; most++ {
		for least := 1; least <= most; least++ {
			leastEven = least
			for n := 1; n <= 20*most; n++ {
				of, batches := evenly(n, most, 1), evenCount(n, most, least)
				what := fmt.Sprintf("%d sequences, at most %d and at least %d in a batch: %v", n, most, least, of)
				largest := of.largest()
				if largest > most || batches > n || !slices.Equal(of, states.Evenly(n, batches)) {
					t.Fatal(what)
				}
				for _, k := range []int{1, shardBundles, Shards} { // Needs tells by the largest batch how many there are
					if (batches > k) != (n > k*largest) {
						t.Fatalf("%s: whether there are more than %d", what, k)
					}
				}
				if batches > (n+most-1)/most && n/batches < least {
					t.Fatalf("%s: fewer would do", what)
				}
				if more := (batches/shardBundles + 1) * shardBundles; batches < Shards && batches%shardBundles != 0 && n/more >= least {
					t.Fatalf("%s: %d would do", what, more)
				}
			}
		}
	}
	for _, c := range []struct{ n, most, want int }{{20, 8, 4}, {24, 8, 4}, {8, 8, 4}, {60, 8, 8}, {128, 8, 16}, {130, 8, 17}, {1, 8, 1}, {2, 8, 1}, {3, 8, 1}, {9, 2, 5}} {
		if got := evenCount(c.n, c.most, 2); got != c.want {
			t.Errorf("%d sequences, at most %d in a batch: %d batches, want %d", c.n, c.most, got, c.want)
		}
	}
}

// TestEvenShards: halves, bundles and shards of as many batches each are of as many sequences, but for one.
func TestEvenShards(t *testing.T) {
	for _, batches := range []int{4, 8, 12, 16, 32, 48} {
		for n := batches; n <= 5*batches; n++ {
			of := batching(states.Evenly(n, batches))
			shards := shardCount(batches)
			seqs := func(lo, hi int) int { // of shards
				first, _ := shardBatches(lo, batches)
				_, last := shardBatches(hi-1, batches)
				return of.part(first, last).seqs()
			}
			var ofShards, ofBundles, ofHalves []int
			for _, p := range shardPieces(of, 1) {
				ofShards = append(ofShards, p.hi-p.lo)
			}
			for bundle := range bundleCount(shards) {
				ofBundles = append(ofBundles, seqs(bundleShards(bundle, shards)))
			}
			for half := range halfCount(shards) {
				ofHalves = append(ofHalves, seqs(halfShards(half, shards)))
			}
			for _, parts := range [][]int{ofShards, ofBundles, ofHalves} {
				if slices.Max(parts)-slices.Min(parts) > 1 {
					t.Fatalf("%d sequences in %d batches: parts of %v", n, batches, parts)
				}
			}
			for half := range of.halves() { // of gradients, which have no shards
				first, last := of.half(half)
				if got := of.part(first, last).seqs(); got != ofHalves[half] {
					t.Fatalf("%d sequences in %d batches: half %d of gradients is of %d, of shards %d", n, batches, half, got, ofHalves[half])
				}
			}
		}
	}
}

// TestHeldOut: an eighth of the sequences judges, or the last one of fewer, whatever batches are.
func TestHeldOut(t *testing.T) {
	for n := 1; n < 70; n++ {
		for batches := 1; batches <= n; batches++ {
			p := batching(states.Evenly(n, batches))
			held := 0
			for i := range p.batches() {
				lo, hi := p.sequences(i)
				from := p.heldFrom(i)
				if from < 0 || from > hi-lo {
					t.Fatalf("%d sequences, %d batches: of batch %d those from %d on judge", n, batches, i, from)
				}
				held += hi - lo - from
			}
			if want := max(1, n/heldOutEvery); held != want {
				t.Fatalf("%d sequences, %d batches: %d judge, want %d", n, batches, held, want)
			}
		}
	}
}

// TestWaitStatsFails: where a half cannot wait, the error says in which folder.
func TestWaitStatsFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	sums := &shardedStats{shardOf: func(i int) int { return i }, halfOf: func(shard int) int { return halfOf(shard, 2) }, sums: quant.NewStats(3), dir: dir}
	defer sums.close()
	if _, err := sums.of(0); err != nil {
		t.Fatal(err)
	}
	if _, err := sums.of(1); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("the error is %v, which does not name %s", err, dir)
	}
}
